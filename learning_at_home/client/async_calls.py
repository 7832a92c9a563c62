"""Expert calls of an event loop: many under way at once, over the loop's own sockets, without a hop to another thread.

Async. What belongs to one loop is used by its thread only, but for its outbox. Calls that begin in one turn of the loop
leave together, one message per node. The exchange is leased while calls are under way and given back when none is.
Many threads that call at once share the swarm's own loop for it: each with sockets of its own would fight the others
for the interpreter at every step.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

import zmq

from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import CallContext, FanOut, Result, Task
from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.errors import LearningAtHomeError, UsageError
from learning_at_home.transport.calls import Answer
from learning_at_home.transport.connections import Exchange

CLOSE_TIMEOUT_S = 2.0
KEPT_S = 1.0  # how long the swarm's own loop keeps its exchange after the last call
ANSWERS_PER_TURN = 16  # of the loop; those who got them ask again, and the nodes work while the others are seen to
CROWD = 4  # calls under way; so many threads are faster over one loop than each for itself
_T = TypeVar("_T")


class AsyncCalls:
    """The asynchronous calls of a swarm. Thread-safe."""

    def __init__(self, context: CallContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopCalls] = weakref.WeakKeyDictionary()
        self._own: LoopThread | None = None
        self._closed = False
        self._shared: LoopCalls | None = None  # of `_own`
        self._pid = os.getpid()

    def of_running_loop(self) -> LoopCalls:
        """What belongs to the loop that runs in this thread. Raises UsageError after `close`."""
        loop = asyncio.get_running_loop()
        calls = self._loops.get(loop)
        if calls is None:
            with self._lock:
                self._check_open()
                calls = self._loops[loop] = LoopCalls(self._context, loop)
        return calls

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the swarm's own loop for calls, which is started by the first. Raises UsageError."""
        try:
            with self._lock:
                self._check_open()
                return self._own_loop().submit(coroutine)
        except UsageError:
            coroutine.close()
            raise

    @property
    def crowded(self) -> bool:
        """Whether so many calls are under way that the next one is better shared."""
        under_way = self._context.connections.num_leased
        if self._shared is not None:
            under_way += self._shared.num_open
        return under_way >= CROWD and not (self._own is not None and self._own.runs_here)

    def share(self, task: Task, timeout_s: float, compression: Compression) -> Shared:
        """Begin a framed call on the swarm's own loop, from any thread but the loop's.

        Raises UsageError after `close` and in a forked child.
        """
        if self._pid != os.getpid():
            raise UsageError("this swarm belongs to the parent process; connect anew after a fork")
        waiting = Shared()
        (self._shared or self._start_sharing()).call_from_anywhere(task, timeout_s, compression, waiting)
        return waiting

    def _start_sharing(self) -> LoopCalls:
        with self._lock:
            self._check_open()
            if self._shared is None:
                loop = self._own_loop().loop
                self._shared = self._loops[loop] = self._loops.get(loop) or LoopCalls(self._context, loop)
                self._shared.keeps_exchange = True
            return self._shared

    def _own_loop(self) -> LoopThread:
        """With the lock held."""
        if self._own is None:
            self._own = LoopThread("expert-calls")
        return self._own

    def close(self) -> None:
        """End all calls with UsageError. May be called twice."""
        with self._lock:
            self._closed = True
            loops, own = dict(self._loops), self._own
        for loop, calls in loops.items():
            calls.close_from_anywhere(loop)
        if own is not None:
            own.close(CLOSE_TIMEOUT_S)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the swarm is closed")


class Shared:
    """A call that a thread waits for; what LoopCalls needs of a future."""

    __slots__ = ("_ended", "_error", "_result", "given_up")

    def __init__(self) -> None:
        self._ended = threading.Lock()  # locked until the call has ended
        self._ended.acquire()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self.given_up = False  # nobody waits any more

    def wait(self, timeout_s: float) -> Result | None:
        """The call's result, or None when there is none in time. Raises what LoopCalls could not do."""
        ended = False
        try:
            ended = self._ended.acquire(timeout=timeout_s)
        finally:
            self.given_up = not ended
        if not ended:
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def done(self) -> bool:
        return self.given_up or self._result is not None or self._error is not None

    def set_result(self, result: Result) -> None:
        self._result = result
        self._ended.release()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._ended.release()


_Waiting = asyncio.Future[Result] | Shared
_NOBODY = (None, None)


class LoopCalls:
    """The calls of one event loop."""

    def __init__(self, context: CallContext, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = weakref.ref(loop)
        self._outbox: deque[tuple[Task, float, Compression, _Waiting]] = deque()
        self._will_send = False  # what is in the outbox, soon
        self._closed = False
        self._waiting: dict[int, tuple[FanOut, _Waiting]] = {}  # by call id
        self._arrived: deque[Answer] = deque()  # at most as many as are waiting
        self._will_take_in = False  # what is left of it, soon
        self._exchange: Exchange | None = None
        self.keeps_exchange = False  # for KEPT_S when nothing is under way: for a loop that lives as long as the swarm
        self._sockets: list[zmq.Socket[bytes]] = []  # those that are watched
        self._watched: dict[int, zmq.Socket[bytes]] = {}  # the same by descriptor
        self._delayed: set[FanOut] = set()  # those with tasks that wait for their moment
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._last_call_s = 0.0  # monotonic

    async def call(self, task: Task, timeout_s: float, compression: Compression) -> Result:
        """A framed task's result. An expert that is full is asked again, one whose connection was lost once more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._outbox.append((task, timeout_s, compression, future))
        if not self._will_send:
            self._will_send = True
            loop.call_soon(self._send)
        return await future

    @property
    def num_open(self) -> int:
        """Calls under way."""
        return len(self._waiting) + len(self._outbox)

    def call_from_anywhere(self, task: Task, timeout_s: float, compression: Compression, waiting: Shared) -> None:
        """Begin a call, from another thread than the loop's. Raises UsageError when the loop has ended."""
        self._outbox.append((task, timeout_s, compression, waiting))
        if self._closed:  # after the append: `_give_up` looks into the outbox after it has set this
            raise UsageError("the swarm is closed")
        if not self._will_send:  # else `_send` has not looked into the outbox yet
            self._will_send = True
            self._running().call_soon_threadsafe(self._send)

    def close_from_anywhere(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is under way; in the loop's thread while the loop runs."""
        if not loop.is_running():
            self._give_up()
            return
        try:
            running_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            running_here = False
        if running_here:
            self._give_up()
            return
        done = threading.Event()

        def give_up() -> None:
            self._give_up()
            done.set()

        loop.call_soon_threadsafe(give_up)
        done.wait(CLOSE_TIMEOUT_S)

    def _send(self) -> None:
        if self.keeps_exchange:
            self._let_threads_join()
        self._will_send = False
        outbox = []
        while self._outbox:
            entry = self._outbox.popleft()
            if not entry[-1].done():
                outbox.append(entry)
        try:
            if self._exchange is None:
                self._exchange = self._context.connections.exchange()
        except LearningAtHomeError as error:
            for _, _, _, future in outbox:
                _fail(future, error)
            return
        rounds: dict[tuple[float, Compression], list[tuple[Task, _Waiting]]] = {}
        for task, timeout_s, compression, future in outbox:
            rounds.setdefault((timeout_s, compression), []).append((task, future))
        now = self._last_call_s = self._context.clock.monotonic_s()
        for (timeout_s, compression), pairs in rounds.items():
            deadline = now + timeout_s
            fanout = FanOut(self._context, self._exchange, deadline, insist=True, compression=compression)
            try:
                asked = fanout.ask([task for task, _ in pairs])
            except Exception as error:  # noqa: BLE001 - a bug of ours: whoever waits is told, the other rounds go on
                for _, future in pairs:
                    _fail(future, error)
                continue
            for call, (_, future) in zip(asked, pairs, strict=True):
                self._waiting[call.call_id] = (fanout, future)
        self._take_in()  # sending may have used up the sign that something arrived

    def _let_threads_join(self) -> None:
        """As long as one more does: those that were answered a moment ago are about to call again, in one message."""
        joined = 0
        while len(self._outbox) > joined:
            joined = len(self._outbox)
            time.sleep(0)

    def _take_in(self) -> None:
        """See to what has arrived, and to what is due."""
        exchange = self._exchange
        if exchange is None:
            return
        due = math.inf
        self._arrived.extend(exchange.take_in())
        for _ in range(min(ANSWERS_PER_TURN, len(self._arrived))):
            answer = self._arrived.popleft()
            call_id = answer.call.call_id
            fanout, future = self._waiting.get(call_id, _NOBODY)
            if fanout is None or future is None:
                continue  # its round failed while it was sent
            result = fanout.judge(answer)
            if result is None:
                self._delayed.add(fanout)
                continue
            del self._waiting[call_id]
            if not future.done():
                future.set_result(result)
        for fanout in list(self._delayed):
            if fanout.send_what_is_due():
                self._take_in_later()  # as in `_send`
            due = min(due, fanout.next_due())
            if fanout.next_due() == math.inf:
                self._delayed.remove(fanout)
        if not self._waiting:
            if not self.keeps_exchange or self._context.clock.monotonic_s() - self._last_call_s >= KEPT_S:
                self._release()
                return
            due = self._last_call_s + KEPT_S
        if self._arrived or exchange.may_have_more:
            self._take_in_later()
        self._watch(exchange)
        self._call_again(min(due, exchange.next_deadline()))

    def _take_in_later(self) -> None:
        """Once: behind the `_send` of those who have their answers now."""
        if not self._will_take_in:
            self._will_take_in = True
            loop = self._running()
            loop.call_soon(loop.call_soon, self._go_on)

    def _go_on(self) -> None:
        self._will_take_in = False
        self._take_in()

    def _watch(self, exchange: Exchange) -> None:
        if self._sockets == exchange.sockets:
            return
        self._sockets = list(exchange.sockets)
        sockets = {int(socket.getsockopt(zmq.FD)): socket for socket in self._sockets}
        loop = self._running()
        for descriptor, socket in self._watched.items():
            if sockets.get(descriptor) is not socket:  # another one may have its number
                loop.remove_reader(descriptor)
        for descriptor, socket in sockets.items():
            if self._watched.get(descriptor) is not socket:
                loop.add_reader(descriptor, self._take_in)
        self._watched = sockets

    def _call_again(self, at: float) -> None:
        """At a moment (monotonic seconds) at the latest."""
        if self._timer is not None and self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay_s = max(0.0, at - self._context.clock.monotonic_s())
        self._timer = self._running().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._take_in()

    def _release(self) -> None:
        """Nothing is under way: give the exchange back."""
        loop = self._loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
        if loop is not None and not loop.is_closed():
            for descriptor in self._watched:
                loop.remove_reader(descriptor)
        self._watched, self._sockets = {}, []
        self._delayed.clear()
        self._arrived.clear()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.give_back()

    def _give_up(self) -> None:
        self._closed = True
        waiting = [future for _, future in self._waiting.values()]
        self._waiting = {}
        while self._outbox:
            waiting.append(self._outbox.popleft()[-1])
        self._release()
        loop = self._loop()
        closed = loop is None or loop.is_closed()  # then nobody waits for its futures
        for future in waiting:
            if isinstance(future, Shared) or not closed:
                _fail(future, UsageError("the swarm was closed before the expert answered"))

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        assert loop is not None, "it runs this code"
        return loop


def _fail(future: _Waiting, error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
