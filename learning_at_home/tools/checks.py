"""What one check of `lah doctor` or `lah expert check` found, and how it is shown; how a check is kept from hanging.

Async, that last part.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from learning_at_home.text import printable

MAX_LINE_CHARS = 1_000
_T = TypeVar("_T")


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report; `fix` says what to do, and is empty only when nothing need be done."""

    name: str
    status: Status
    seen: str
    fix: str = ""


def ok(name: str, seen: str) -> Check:
    return Check(name, Status.OK, seen)


def warning(name: str, seen: str, fix: str) -> Check:
    return Check(name, Status.WARNING, seen, fix)


def failed(name: str, seen: str, fix: str) -> Check:
    return Check(name, Status.FAILED, seen, fix)


def check_lines(checks: Sequence[Check]) -> list[str]:
    """A line for each check, and below it what to do where it is not ok; what strangers wrote is made printable."""
    width = max(len(check.name) for check in checks)
    told = []
    for check in checks:
        told.append(f"{check.status:<7}  {check.name:<{width}}  {printable(check.seen, MAX_LINE_CHARS)}")
        if check.fix:
            told.append(f"{'':<7}  {'':<{width}}  -> {printable(check.fix, MAX_LINE_CHARS)}")
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    told.append(", ".join(f"{status}: {count}" for status, count in counts.items() if count))
    return told


async def within(work: Coroutine[Any, Any, Check], timeout_s: float, late: Check) -> Check:
    """What the work finds, or `late` when that takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        return late


async def on_a_thread(work: Callable[[], _T]) -> _T:
    """What a blocking call returns or raises, on a thread that nobody ever waits for.

    A name server or a disk that does not answer cannot be called off; a thread of a pool would hold up the end of the
    process for as long as it blocks.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def tell(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # a _T where there is no error

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, problem)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await done
