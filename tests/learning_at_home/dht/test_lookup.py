"""The lookup's core as tables, and its driver over a network in memory."""

import asyncio
import time
from collections.abc import Sequence

from learning_at_home.clock import SystemClock
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.crawl import run_lookups, told_of
from learning_at_home.dht.lookup import ALPHA, HOPELESS, LATE, MAX_ASKED, SPARE, Lookup
from learning_at_home.testing import ManualClock

TARGET = bytes(20)
OWN_ID = b"\xff" * 20
PATIENCE_S = 0.25


def contact_of(node_id: bytes, port: int) -> Contact:
    """With an id that no key has."""
    return tuple.__new__(Contact, (node_id, "127.0.0.1", port, node_id, int.from_bytes(node_id, "big")))


def contact(distance: int) -> Contact:
    return contact_of(distance.to_bytes(20, "big"), distance)


def lookup_of(*distances: int, k: int = 20, need: int = 20, target: bytes = TARGET) -> Lookup:
    lookup = Lookup(target, OWN_ID, k, need, lambda _: PATIENCE_S, BlockLimits())
    lookup.add(contact(distance) for distance in distances)
    return lookup


def asked_by(lookup: Lookup, now: float = 0.0) -> list[int]:
    return [asked.port for asked in lookup.next_to_ask(now)]


def test_the_closest_are_asked_first_and_only_alpha_at_once():
    lookup = lookup_of(*range(100, 0, -1))

    assert asked_by(lookup) == list(range(1, ALPHA + 1))
    assert asked_by(lookup, now=0.1) == []


def test_no_more_are_asked_than_are_needed_and_a_few():
    assert len(asked_by(lookup_of(*range(1, 100), need=3))) == 3 + SPARE


def test_an_overdue_question_makes_room_for_another():
    lookup = lookup_of(*range(1, 100))
    lookup.next_to_ask(now=0.0)

    assert asked_by(lookup, now=PATIENCE_S) == list(range(ALPHA + 1, 2 * ALPHA + 1))


def test_it_is_done_when_enough_of_the_closest_have_answered_whichever_they_are():
    lookup = lookup_of(*range(1, 100), need=2)
    asked = lookup.next_to_ask(now=0.0)
    lookup.answered(asked[2], {}, now=0.0)
    assert not lookup.is_done(now=0.0)

    lookup.answered(asked[3], {}, now=0.0)
    assert lookup.is_done(now=0.0)
    assert lookup.closest() == [contact(3), contact(4)]


def test_an_answer_of_one_who_is_not_among_the_k_closest_is_not_enough():
    lookup = lookup_of(10, 20, k=2, need=1)
    far, near = contact(20), contact(10)
    lookup.next_to_ask(now=0.0)
    lookup.answered(far, told_of([contact(1), contact(2)]), now=0.0)
    assert not lookup.is_done(now=0.0)

    assert asked_by(lookup) == [1, 2]
    lookup.answered(contact(1), {}, now=0.0)
    lookup.answered(contact(2), {}, now=0.0)
    assert lookup.is_done(now=0.0)
    assert near not in lookup.closest()


def test_a_dead_peer_s_place_goes_to_the_next():
    lookup = lookup_of(10, 20, 30, k=2, need=2)
    first, second = lookup.next_to_ask(now=0.0)
    lookup.failed(first)
    lookup.answered(second, {}, now=0.0)

    assert not lookup.is_done(now=0.0)
    assert asked_by(lookup) == [30]


def test_those_whom_others_tell_of_are_asked_once_and_oneself_never():
    lookup = lookup_of(10)
    (asked,) = lookup.next_to_ask(now=0.0)
    lookup.answered(asked, told_of([contact(10), contact(5), contact(5), contact_of(OWN_ID, 1)]), now=0.0)

    assert asked_by(lookup) == [5]


def test_the_nearest_that_each_peer_told_of_are_asked_however_near_a_liar_s_are():
    lookup = lookup_of(1_000, 2_000, k=5, need=2)
    honest, liar = contact(2_000), contact(1_000)
    lookup.next_to_ask(now=0.0)
    lookup.answered(liar, told_of([contact(distance) for distance in range(1, 20)]), now=0.0)
    lookup.answered(honest, told_of([contact(distance) for distance in range(500, 520)]), now=0.0)

    assert {500, 501} <= set(asked_by(lookup))
    for false in (1, 2):
        lookup.answered(contact(false), {}, now=0.0)
    assert not lookup.is_done(now=0.0)

    lookup.answered(contact(501), {}, now=0.0)
    assert lookup.is_done(now=0.0)


def test_a_lying_neighbourhood_cannot_make_it_endless():
    lookup = lookup_of(1 << 100)
    asked = 0
    while questions := lookup.next_to_ask(now=0.0):
        for question in questions:
            asked += 1
            nearer = int.from_bytes(question.node_id, "big") - 1
            lookup.answered(question, told_of([contact_of(nearer.to_bytes(20, "big"), 1)]), now=0.0)

    assert asked == MAX_ASKED
    assert lookup.is_done(now=0.0)


def test_an_overdue_peer_is_waited_for_only_while_too_few_have_answered():
    lookup = lookup_of(10, 20, k=1, need=1)
    (near,) = [asked for asked in lookup.next_to_ask(now=0.0) if asked.port == 10]
    assert not lookup.is_done(now=PATIENCE_S / 2)
    assert lookup.next_change_s(now=PATIENCE_S / 2) == PATIENCE_S

    (far,) = lookup.next_to_ask(now=PATIENCE_S)
    lookup.answered(far, {}, now=0.0)
    assert lookup.is_done(now=PATIENCE_S)
    assert lookup.closest() == [far]

    lookup.answered(near, {}, now=0.0)
    assert lookup.closest() == [near]


def test_where_too_few_have_answered_the_overdue_are_waited_for_a_little_longer():
    lookup = lookup_of(10, 20)
    dead, living = lookup.next_to_ask(now=0.0)
    lookup.answered(living, {}, now=0.0)

    assert not lookup.is_done(now=PATIENCE_S)
    assert lookup.next_change_s(now=PATIENCE_S) == HOPELESS * PATIENCE_S
    assert lookup.is_done(now=HOPELESS * PATIENCE_S)
    assert dead not in lookup.closest()


def test_where_the_others_answer_much_sooner_than_expected_nobody_is_waited_for_as_long():
    """As on a local network, or after a busy moment; those who take their usual time leave the others theirs."""
    lookup, slow = lookup_of(*range(1, 100), need=2), lookup_of(*range(1, 100), need=2)
    for each, took_s in ((lookup, PATIENCE_S / 100), (slow, PATIENCE_S / 2)):
        asked = each.next_to_ask(now=0.0)
        each.answered(asked[0], {}, now=took_s)

    assert lookup.next_change_s(now=PATIENCE_S / 100) == LATE * PATIENCE_S / 100
    assert asked_by(lookup, now=LATE * PATIENCE_S / 100) == [6, 7, 8, 9]  # one is missing, and the spare
    assert slow.next_change_s(now=PATIENCE_S / 2) == PATIENCE_S


def test_a_store_is_done_when_most_of_the_closest_have_answered_or_are_hopeless():
    """Those who are late were told, too; where they are most of the closest their answers are worth waiting for."""
    found = lookup_of(*range(1, 12), k=4, need=2)
    asked = found.next_to_ask(now=0.0)
    found.answered(asked[0], {}, now=0.002)
    telling, told = found.telling(4), []
    told += telling.next_to_ask(now=1.0)
    assert [peer.port for peer in told] == [1, 2, 3, 4]
    telling.answered(told[3], {}, now=1.002)
    for instead in telling.next_to_ask(now=1.01):
        telling.answered(instead, {}, now=1.012)

    assert [peer.port for peer in telling.closest()] == [4, 5, 6, 7]
    assert not telling.is_done(now=1.012), "of the four closest three are late"
    telling.answered(told[0], {}, now=1.1)
    assert telling.is_done(now=1.1)


def test_where_nothing_is_lost_just_those_are_asked_that_are_needed():
    lookup = lookup_of(*range(1, 100), need=3)
    lookup.spare = 0

    assert asked_by(lookup) == [1, 2, 3]
    lookup.answered(contact(1), {}, now=0.0)
    assert asked_by(lookup, now=PATIENCE_S) == [4, 5, 6, 7, 8]


async def test_the_driver_finds_the_closest_of_a_hundred_from_one_contact():
    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> list[dict[int, Contact]]:
        await asyncio.sleep(0)
        return [told_of(contact(max(1, asked.port - step)) for step in (1, 7, 20)) for _ in lookups]

    lookup = lookup_of(100, k=4, need=4)
    async with asyncio.timeout(5):
        await run_lookups([lookup], ask, ManualClock())

    assert [found.port for found in lookup.closest()] == [1, 2, 3, 4]


async def test_the_driver_asks_a_peer_once_for_all_the_targets_that_it_matters_to():
    questions: list[tuple[int, int]] = []

    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> list[dict[int, Contact]]:
        questions.append((asked.port, len(lookups)))
        return [{} for _ in lookups]

    lookups = [lookup_of(*range(1, 31), need=20, target=bytes(19) + bytes([target])) for target in (0, 1, 2)]
    async with asyncio.timeout(5):
        await run_lookups(lookups, ask, ManualClock())

    assert len({port for port, _ in questions}) == len(questions)
    assert [len(lookup.closest()) for lookup in lookups] == [20, 20, 20]


async def test_the_driver_asks_the_dead_side_by_side_not_one_after_another():
    """Three dead of four: the questions to all of them are under way at the same time."""
    waiting: set[int] = set()
    all_wait = asyncio.Event()

    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> list[dict[int, Contact]] | None:
        if asked.port == 40:
            return [{}]
        waiting.add(asked.port)
        if len(waiting) == 3:
            all_wait.set()
        await all_wait.wait()
        return None

    lookup = lookup_of(10, 20, 30, 40)
    async with asyncio.timeout(5):
        await run_lookups([lookup], ask, ManualClock())

    assert lookup.closest() == [contact(40)]


async def test_the_driver_leaves_no_question_behind():
    cancelled = asyncio.Event()

    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> list[dict[int, Contact]] | None:
        if asked.port == 10:
            return [{}]
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return None

    lookup = lookup_of(10, 99, need=1)
    async with asyncio.timeout(5):
        await run_lookups([lookup], ask, ManualClock())

    assert lookup.closest() == [contact(10)]
    assert cancelled.is_set()


async def test_a_stall_of_this_process_makes_nobody_silent():
    """The answers lie unread in the socket when all patience is over; a loop reads one of them a turn."""
    loop = asyncio.get_running_loop()

    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> list[dict[int, Contact]] | None:
        await asyncio.sleep(0.01)
        for _ in range(5 * asked.port):
            await asyncio.sleep(0)
        return [{}]

    loop.call_later(0.005, time.sleep, 2 * HOPELESS * PATIENCE_S)
    lookup = lookup_of(*range(1, 6))
    async with asyncio.timeout(10):
        await run_lookups([lookup], ask, SystemClock())

    assert lookup.num_answered == 5


async def test_nobody_to_ask_is_an_empty_answer():
    async def ask(asked: Contact, lookups: Sequence[Lookup]) -> None:
        raise AssertionError("nobody is known")

    lookup = lookup_of()
    async with asyncio.timeout(5):
        await run_lookups([lookup], ask, ManualClock())

    assert (lookup.closest(), lookup.num_answered) == ([], 0)


def test_answers_that_change_nothing_leave_it_idle_until_enough_are_there():
    lookup = lookup_of(1, 2, 3, k=3, need=3)
    asked = lookup.next_to_ask(now=0.0)
    assert not lookup.is_idle(now=0.0)
    lookup.rest(now=0.0)

    for answering in asked[:2]:
        lookup.answered(answering, told_of(asked), now=0.0)
        assert lookup.is_idle(now=0.0)
    lookup.answered(asked[2], told_of(asked), now=0.0)
    assert not lookup.is_idle(now=0.0)
    assert lookup.is_done(now=0.0)


def test_a_new_peer_a_failure_and_time_end_its_rest():
    def resting() -> Lookup:
        lookup = lookup_of(10, 20, k=3, need=3)
        lookup.next_to_ask(now=0.0)
        lookup.rest(now=0.0)
        assert lookup.is_idle(now=0.0)
        return lookup

    hearing, losing, waiting = resting(), resting(), resting()
    hearing.answered(contact(10), told_of([contact(5)]), now=0.0)
    losing.failed(contact(10))

    assert not hearing.is_idle(now=0.0)
    assert not losing.is_idle(now=0.0)
    assert not waiting.is_idle(now=PATIENCE_S)


def test_of_all_that_one_peer_tells_only_the_k_nearest_are_noted():
    lookup = lookup_of(1_000, k=3, need=3)
    (teller,) = lookup.next_to_ask(now=0.0)
    lookup.answered(teller, told_of(contact(distance) for distance in range(100, 0, -1)), now=0.0)

    assert asked_by(lookup) == [1, 2, 3]
    for distance in (1, 2, 3):
        lookup.failed(contact(distance))
    assert asked_by(lookup) == []
