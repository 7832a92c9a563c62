"""The lookup's core as tables, and its driver over a network in memory."""

import asyncio

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.lookup import HOPELESS, MAX_ASKED, Lookup, run_lookup
from learning_at_home.testing import ManualClock

TARGET = bytes(20)
OWN_ID = b"\xff" * 20
PATIENCE_S = 0.25


def contact(distance: int) -> Contact:
    return Contact(distance.to_bytes(20, "big"), "127.0.0.1", distance)


def lookup_of(*distances: int, k: int = 3, alpha: int = 2) -> Lookup:
    lookup = Lookup(TARGET, OWN_ID, k, lambda _: PATIENCE_S, alpha)
    lookup.add(contact(distance) for distance in distances)
    return lookup


def test_the_closest_are_asked_first_and_only_alpha_at_once():
    lookup = lookup_of(50, 10, 30)

    assert lookup.next_to_ask(now=0.0) == [contact(10), contact(30)]
    assert lookup.next_to_ask(now=0.1) == []


def test_an_overdue_question_makes_room_for_another():
    lookup = lookup_of(10, 30, 50)
    lookup.next_to_ask(now=0.0)

    assert lookup.next_to_ask(now=PATIENCE_S) == [contact(50)]


def test_it_is_done_when_the_k_closest_have_answered():
    lookup = lookup_of(10, 20, 30, 40, k=2)
    for asked in lookup.next_to_ask(now=0.0):
        assert not lookup.is_done(now=0.0)
        lookup.answered(asked, [])

    assert lookup.is_done(now=0.0)
    assert lookup.closest() == [contact(10), contact(20)]


def test_a_dead_peer_s_place_goes_to_the_next():
    lookup = lookup_of(10, 20, 30, k=2)
    first, second = lookup.next_to_ask(now=0.0)
    lookup.failed(first)
    lookup.answered(second, [])

    assert not lookup.is_done(now=0.0)
    assert lookup.next_to_ask(now=0.0) == [contact(30)]


def test_it_waits_for_one_who_could_still_be_among_the_closest_and_for_no_other():
    lookup = lookup_of(10, 40, k=1)
    near, far = lookup.next_to_ask(now=0.0)
    lookup.answered(far, [])
    assert not lookup.is_done(now=0.0)

    lookup.answered(near, [])
    assert lookup.is_done(now=0.0)


def test_those_whom_others_tell_of_are_asked_once_and_oneself_never():
    lookup = lookup_of(10, k=3)
    (asked,) = lookup.next_to_ask(now=0.0)
    lookup.answered(asked, [contact(10), contact(5), contact(5), Contact(OWN_ID, "127.0.0.1", 1)])

    assert lookup.next_to_ask(now=0.0) == [contact(5)]


def test_a_lying_neighbourhood_cannot_make_it_endless():
    lookup = lookup_of(1 << 100)
    asked = 0
    while questions := lookup.next_to_ask(now=0.0):
        for question in questions:
            asked += 1
            nearer = int.from_bytes(question.node_id, "big") - 1
            lookup.answered(question, [Contact(nearer.to_bytes(20, "big"), "127.0.0.1", 1)])

    assert asked == MAX_ASKED
    assert lookup.is_done(now=0.0)


def test_an_overdue_peer_is_waited_for_only_while_too_few_have_answered():
    lookup = lookup_of(10, 20, 30, k=1, alpha=2)
    near, far = lookup.next_to_ask(now=0.0)
    assert not lookup.is_done(now=PATIENCE_S)

    lookup.answered(far, [])
    assert not lookup.is_done(now=PATIENCE_S / 2)
    assert lookup.next_change_s(now=PATIENCE_S / 2) == PATIENCE_S
    assert lookup.is_done(now=PATIENCE_S)
    assert lookup.closest() == [far]

    lookup.answered(near, [])
    assert lookup.closest() == [near]


def test_where_too_few_have_answered_the_overdue_are_waited_for_a_little_longer():
    lookup = lookup_of(10, 20, k=2)
    dead, living = lookup.next_to_ask(now=0.0)
    lookup.answered(living, [])

    assert not lookup.is_done(now=PATIENCE_S)
    assert lookup.next_change_s(now=PATIENCE_S) == HOPELESS * PATIENCE_S
    assert lookup.is_done(now=HOPELESS * PATIENCE_S)
    assert dead not in lookup.closest()


async def test_the_driver_finds_the_closest_of_a_hundred_from_one_contact():
    async def ask(asked: Contact) -> list[Contact]:
        await asyncio.sleep(0)
        return [contact(max(1, asked.port - step)) for step in (1, 7, 20)]

    lookup = lookup_of(100, k=4)
    async with asyncio.timeout(5):
        await run_lookup(lookup, ask, ManualClock())

    assert [found.port for found in lookup.closest()] == [1, 2, 3, 4]


async def test_the_driver_asks_the_dead_side_by_side_not_one_after_another():
    """Three dead of four: the questions to all of them are under way at the same time."""
    waiting: set[int] = set()
    all_wait = asyncio.Event()

    async def ask(asked: Contact) -> list[Contact] | None:
        if asked.port == 40:
            return []
        waiting.add(asked.port)
        if len(waiting) == 3:
            all_wait.set()
        await all_wait.wait()
        return None

    lookup = lookup_of(10, 20, 30, 40, k=4, alpha=3)
    async with asyncio.timeout(5):
        await run_lookup(lookup, ask, ManualClock())

    assert lookup.closest() == [contact(40)]


async def test_the_driver_leaves_no_question_behind():
    cancelled = asyncio.Event()

    async def ask(asked: Contact) -> list[Contact] | None:
        if asked.port == 10:
            return []
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    lookup = lookup_of(10, 99, k=1, alpha=2)
    async with asyncio.timeout(5):
        await run_lookup(lookup, ask, ManualClock())

    assert lookup.closest() == [contact(10)]
    assert cancelled.is_set()


async def test_nobody_to_ask_is_an_empty_answer():
    lookup = lookup_of()
    async with asyncio.timeout(5):
        await run_lookup(lookup, lambda asked: asyncio.sleep(0, []), ManualClock())

    assert (lookup.closest(), lookup.num_answered) == ([], 0)
