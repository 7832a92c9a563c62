"""Ask the peers that lookups want asked, each once for all the targets that it matters to. Async."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from learning_at_home.clock import Clock
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.lookup import Lookup

STALL_S = 0.03  # a timer this late means that nobody was looking: the answers may lie unread in the socket

Told = Sequence[Mapping[int, Contact]]  # per target; see told_of


def told_of(contacts: Iterable[Contact]) -> dict[int, Contact]:
    """By the number of their ids."""
    return {contact.number: contact for contact in contacts}


async def run_lookups(
    lookups: Sequence[Lookup],
    ask: Callable[[Contact, Sequence[Lookup]], Awaitable[Told | None]],
    clock: Clock,
) -> None:
    """Ask until all are done, a peer once for all the targets that it matters to.

    `ask` returns whom the peer told us of for each of these, or None when it did not answer in its time.
    """
    progress = asyncio.Event()
    open_ones = list(lookups)

    async def ask_one(contact: Contact, concerned: list[Lookup]) -> None:
        answer = await ask(contact, concerned)
        now = clock.monotonic_s()
        if answer is None:
            for lookup in concerned:
                lookup.failed(contact)
        else:
            for lookup, told in zip(concerned, answer, strict=True):
                lookup.answered(contact, told, now)
        progress.set()

    under_way: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as tasks:
        while True:
            now = clock.monotonic_s()
            looked_at = [lookup for lookup in open_ones if not lookup.is_idle(now)]
            for contact, concerned in _questions(looked_at, open_ones, now).items():
                task = tasks.create_task(ask_one(contact, concerned))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            done = {lookup for lookup in looked_at if lookup.is_done(now)}
            open_ones = [lookup for lookup in open_ones if lookup not in done]
            if not open_ones:
                break
            progress.clear()
            for lookup in looked_at:
                lookup.rest(now)
            change_s = min(lookup.idle_until_s for lookup in open_ones)
            await _wait(progress, change_s - now)  # for an answer, or until someone is overdue
            late_s = clock.monotonic_s() - change_s
            if late_s > STALL_S:
                for lookup in open_ones:
                    lookup.postpone(late_s + STALL_S)
        for task in under_way:
            task.cancel()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until it is set, at most so long. asyncio.timeout costs four times as much, which a look-up pays per answer."""
    if timeout_s < math.inf:
        timer = asyncio.get_running_loop().call_later(timeout_s, event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()
    else:
        await event.wait()


def _questions(looked_at: Sequence[Lookup], open_ones: Sequence[Lookup], now: float) -> dict[Contact, list[Lookup]]:
    """Whom to ask now, for which targets."""
    questions: dict[Contact, list[Lookup]] = {}
    for lookup in looked_at:
        for contact in lookup.next_to_ask(now):
            questions.setdefault(contact, []).append(lookup)
    if len(open_ones) > 1:
        for contact, concerned in questions.items():
            concerned += [lookup for lookup in open_ones if lookup.join(contact, now)]
    return questions
