"""An asyncio loop in a thread of its own, for synchronous code that owns asynchronous things. Threaded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

JOIN_TIMEOUT_S = 10.0


class LoopThread:
    """Runs coroutines from other threads; `close` waits for its threads."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, ResultT], timeout_s: float) -> ResultT:
        """The coroutine's result. Raises what it raises, or TimeoutError."""
        return self.submit(work).result(timeout_s)

    def call(self, function: Callable[[], object]) -> None:
        """Call it on the loop's thread, soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.run(self._loop.shutdown_default_executor(), JOIN_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_TIMEOUT_S)
        self._loop.close()
