"""The other end of a `Side`: a process that measures one way of doing the work, told by lines of JSON what to do next.

Needs nothing but the standard library, because rivals run it in an environment of their own. Commands come on stdin,
answers leave on stdout; whatever else a worker prints goes to stderr. It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What to time. The answer is seconds per call, or calls per second where several callers share the time."""

    name: str  # what it means is the worker's
    rows: int = 1
    callers: int = 1
    budget_s: float = 1.0  # calls are repeated for so long; one is always made
    warm_s: float = 0.1  # and are made unmeasured for so long before; 0: not at all
    delay_s: float = 0.0  # that a call takes longer, where nodes are a long way off
    lost: float = 0.0  # share of calls that are lost on the way


class Worker(Protocol):
    """One way of doing the work. What it raises is its answer to the command, and it goes on."""

    def check(self) -> None:
        """Compare outputs with plain torch. Raises AssertionError when they differ."""
        ...

    def ready(self) -> None:
        """After a stop: return once calls would be answered again."""
        ...

    def measure(self, work: Work) -> float: ...

    def close(self) -> None: ...


def settings_of(kind: type[SettingsT]) -> SettingsT:
    """A worker's settings: its command line is one JSON object."""
    return kind(**json.loads(sys.argv[1]))


def serve(make: Callable[[], Worker]) -> None:
    """Make the worker, then obey until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        worker = make()
    except BaseException as error:
        traceback.print_exc()
        answer({"error": explained(error)})
        raise SystemExit(1) from error
    answer({"value": "started"})
    try:
        for line in sys.stdin:
            try:
                answer({"value": _obey(worker, json.loads(line))})
            except Exception as error:  # noqa: BLE001 - the edge: the benchmark writes it into the row
                traceback.print_exc()
                answer({"error": explained(error)})
    finally:
        worker.close()


def command(do: str, work: Work | None = None) -> str:
    """The line that tells a worker to `check`, to be `ready` or to `measure`."""
    return json.dumps({"do": do, "work": asdict(work) if work is not None else None}) + "\n"


def explained(error: BaseException) -> str:
    """For a row's `why`."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def seconds_per_call(call: Callable[[], object], work: Work) -> float:
    """The median of calls that follow one another."""
    _warm(call, work.warm_s)
    taken: list[float] = []
    end = time.perf_counter() + work.budget_s
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def calls_per_second_of_threads(call: Callable[[], object], work: Work) -> float:
    """Of so many threads that each call again as soon as they are answered. Raises what a call raised."""
    counts = [0] * work.callers
    errors: list[BaseException] = []
    warm_until = time.perf_counter() + work.warm_s
    all_warm = threading.Barrier(work.callers + 1)
    end = float("inf")

    def run(number: int) -> None:
        try:
            call()
            while time.perf_counter() < warm_until:
                call()
            all_warm.wait()
            while time.perf_counter() < end:
                call()
                counts[number] += 1
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            errors.append(error)
            all_warm.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(work.callers)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        all_warm.wait()
    started = time.perf_counter()
    end = started + work.budget_s
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts) / (time.perf_counter() - started)


async def calls_per_second_in_flight(call: Callable[[], Awaitable[object]], work: Work) -> float:
    """Of so many calls in flight on one event loop."""

    async def run(until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            await call()
            count += 1
        return count

    async def run_all(for_s: float) -> float:
        started = time.perf_counter()
        counts = await asyncio.gather(*(run(started + for_s) for _ in range(work.callers)))
        return sum(counts) / (time.perf_counter() - started)

    if work.warm_s > 0:
        await run_all(work.warm_s)
    return await run_all(work.budget_s)


def _warm(call: Callable[[], object], for_s: float) -> None:
    end = time.perf_counter() + for_s
    while time.perf_counter() < end:
        call()


def _obey(worker: Worker, message: dict[str, object]) -> float | None:
    match message:
        case {"do": "check"}:
            worker.check()
        case {"do": "ready"}:
            worker.ready()
        case {"do": "measure", "work": dict(fields)}:
            return worker.measure(Work(**fields))
        case _:
            raise ValueError(f"no such command: {message}")
    return None
