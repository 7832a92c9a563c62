"""What one check of `lah doctor` found, and how a check is kept from hanging. Async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

_T = TypeVar("_T")


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's; `fix` says what to do, and is empty only when nothing need be done."""

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
