"""A wide-area line in front of a node: a TCP proxy with delay, jitter, bandwidth, loss, cuts and silence.

with WanProxy("127.0.0.1", node_port, Wan(delay_s=0.05, bytes_per_s=12.5e6)) as proxy:
    ...  # connect to proxy.host, proxy.port
    proxy.change(Wan(delay_s=0.2))
    proxy.cut()

Threaded, and asyncio on the thread's loop: all but `_Proxy` and `_Side` may be used from any thread. It holds
`Wan.window_bytes` of each connection each way at most; then it reads no more of the sender, whose own buffers fill.
Over a distance, TCP's handshake takes a round trip: a connection's first byte leaves so much later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.errors import ConfigError, LearningAtHomeError, UsageError
from learning_at_home.testing.wan import Line, Wan, WanCounters, Way
from learning_at_home.testing.zmtp_loss import MessageLoss

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # of what is asked of the proxy's own thread
# Of one read. A plain asyncio.Protocol is given what came in 256 KiB of memory that is taken from the system and given
# back each time: twice as long as all the rest takes.
BUFFER_BYTES = 1 << 16
BACKLOG = 1_024  # many trainers may come at once
PERFECT = Wan()
_T = TypeVar("_T")


class WanProxy:
    """Begins with the context; on leaving it, all connections are cut.

    Leaving raises UsageError when messages of an encrypted connection were to be lost, which nobody can tell apart.
    """

    def __init__(
        self,
        to_host: str,
        to_port: int,
        wan: Wan = PERFECT,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        loop: LoopThread | None = None,
    ) -> None:
        """`loop`: of several proxies that share a thread; its maker closes it."""
        self.host = host
        self.port = port
        self._loop = loop
        self._shares_loop = loop is not None
        self._proxy = _Proxy(to_host, to_port, wan)
        self._closed = False

    def __enter__(self) -> WanProxy:
        """Raises ConfigError when the port is taken."""
        if self._loop is None:
            self._loop = LoopThread("wan-proxy")
        try:
            self.port = self._run(self._proxy.start(self.host, self.port))
        except OSError as error:
            self._close_loop()
            raise ConfigError(f"the proxy cannot listen on {self.host}:{self.port}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._proxy.error is not None:
            raise self._proxy.error

    def lead_to(self, host: str, port: int) -> None:
        """New connections go there."""
        self._call(self._proxy.lead_to, host, port)

    def change(self, wan: Wan) -> None:
        """From now on the line is like this; what is under way arrives as it would have. The seed stays."""
        self._call(self._proxy.change, wan)

    def cut(self) -> int:
        """End all connections at once, as a router does that forgets them; how many there were. New ones may come."""
        return int(self._call(self._proxy.cut))

    def stall(self) -> None:
        """Deliver nothing any more, either way, and end nothing: a cable that was pulled out."""
        self._call(self._proxy.stall, True)

    def go_on(self) -> None:
        """After `stall`: what was held is delivered now, as TCP sends again what was not acknowledged."""
        self._call(self._proxy.stall, False)

    @property
    def counters(self) -> WanCounters:
        counters: WanCounters = self._call(self._proxy.counters)
        return counters

    def close(self) -> None:
        """May be called twice."""
        if self._closed or self._loop is None:
            return
        self._closed = True
        try:
            self._run(self._proxy.close())
        finally:
            self._close_loop()

    def _call(self, function: Any, *arguments: object) -> Any:
        async def call() -> Any:
            return function(*arguments)

        return self._run(call())

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None or (self._closed and self._loop.loop.is_closed()):
            coroutine.close()
            raise UsageError("the proxy does not run: use it as a context")
        return self._loop.submit(coroutine).result(TIMEOUT_S)

    def _close_loop(self) -> None:
        if self._loop is not None and not self._shares_loop:
            self._loop.close(TIMEOUT_S)


class _Proxy:
    """All of it, on its loop."""

    def __init__(self, to_host: str, to_port: int, wan: Wan) -> None:
        self._to = to_host, to_port
        self.wan = wan
        self.up, self.down = Line(wan, "up"), Line(wan, "down")
        self.stalled = False
        self.error: LearningAtHomeError | None = None
        self.sides: set[_Side] = set()
        self.held_bytes = self.most_held_bytes = 0
        self.messages = self.messages_lost = 0
        self._bytes = {self.up: 0, self.down: 0}
        self._connections = self._cut = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._nobody_left = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, self.up), host, port, backlog=BACKLOG)
        return int(self._server.sockets[0].getsockname()[1])

    def lead_to(self, host: str, port: int) -> None:
        self._to = host, port

    def change(self, wan: Wan) -> None:
        self.wan = self.up.wan = self.down.wan = wan

    def cut(self) -> int:
        opened = sum(side.line is self.up for side in self.sides)
        self._cut += opened
        for side in list(self.sides):
            side.abort()
        return opened

    def stall(self, stalled: bool) -> None:
        self.stalled = stalled
        for side in list(self.sides):
            side.deliver()

    def counters(self) -> WanCounters:
        return WanCounters(
            connections=self._connections,
            open_connections=sum(side.line is self.up for side in self.sides),
            cut=self._cut,
            bytes_up=self._bytes[self.up],
            bytes_down=self._bytes[self.down],
            held_bytes=self.held_bytes,
            most_held_bytes=self.most_held_bytes,
            resent=self.up.num_resent + self.down.num_resent,
            messages=self.messages,
            messages_lost=self.messages_lost,
        )

    async def close(self) -> None:
        self._server.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self.cut()
        if self.sides:  # a transport that is aborted says so in the loop's next turn
            await self._nobody_left.wait()
        await self._server.wait_closed()

    def connect(self, caller: _Side) -> None:
        """A caller has come: connect to the node for it."""
        self._connections += 1
        task = asyncio.get_running_loop().create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, caller: _Side) -> None:
        try:
            node = _Side(self, self.down)
            node.peer = caller
            await asyncio.get_running_loop().create_connection(lambda: node, *self._to)
        except OSError as error:
            log.info("nobody answers at %s:%d: %s", *self._to, error)
            caller.abort()

    def left(self, side: _Side) -> None:
        self.sides.discard(side)
        if not self.sides:
            self._nobody_left.set()

    def moved(self, line: Line, num_bytes: int) -> None:
        self._bytes[line] += num_bytes

    def hold(self, num_bytes: int) -> None:
        self.held_bytes += num_bytes
        self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)


class _Side(asyncio.BufferedProtocol):
    """One end of a connection, and what is on its way from there to its peer, the other end."""

    def __init__(self, proxy: _Proxy, line: Line) -> None:
        self._proxy = proxy
        self.line = line  # that takes what this end sends
        self.peer: _Side | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._under_way: deque[tuple[float, bytes]] = deque()  # when it arrives; b"" is the end of the stream
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_full = False  # towards this end: it does not read what was delivered
        self._reads = True
        self._has_ended = False  # it will send nothing more
        self._end_delivered = False
        self._loss: MessageLoss | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "it is TCP"
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        proxy = self._proxy
        proxy.sides.add(self)
        proxy._nobody_left.clear()
        from_caller = self.line is proxy.up
        self._way = Way(self.line, self._loop.time() + (2 * proxy.wan.delay_s if from_caller else 0.0))
        if proxy.wan.lost:
            self._loss = MessageLoss(proxy.wan.lost, self.line.random)
        if from_caller:
            proxy.connect(self)
            return
        peer = self.peer
        assert peer is not None, "it was connected for it"
        if peer._transport is None:  # the caller has left in the meantime
            transport.abort()
            return
        peer.peer = self
        peer.deliver()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._loss is not None:
            data = self._lose(self._loss, data)
            if not data:
                return
        now = self._loop.time()
        self._under_way.append((self._way.arrival(len(data), now), data))
        self._held_bytes += len(data)
        self._proxy.hold(len(data))
        if self._timer is None:
            self.deliver()
        self._read_or_not()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._under_way.append((self._way.arrival(0, self._loop.time()), b""))
        self.deliver()
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self.peer is not None:
            self.peer.deliver()

    def connection_lost(self, error: Exception | None) -> None:
        """What this end has sent still arrives, then the end; what is on its way to it is thrown away."""
        self._proxy.left(self)
        self._transport = None
        peer = self.peer
        if peer is None or peer._transport is None:
            self._drop()
            if peer is not None:
                peer._drop()
            return
        peer._drop()
        self._under_way.append((self._way.arrival(0, self._loop.time()), b""))
        self.deliver()

    def abort(self) -> None:
        self._drop()
        if self._transport is not None:
            self._transport.abort()
        if self.peer is not None and self.peer._transport is not None and self.peer.peer is self:
            self.peer._drop()
            self.peer._transport.abort()

    def deliver(self) -> None:
        """Give the peer what has arrived by now, and come back when more has."""
        peer = self.peer
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._under_way and not self._proxy.stalled:
            if peer is None or peer._transport is None or peer._is_full:
                break
            due, data = self._under_way[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._deliver_due)
                break
            self._under_way.popleft()
            self._held_bytes -= len(data)
            self._proxy.held_bytes -= len(data)
            if data:
                self._proxy.moved(self.line, len(data))
                peer._transport.write(data)
            else:
                self._deliver_end(peer, peer._transport)
        self._read_or_not()

    def _deliver_end(self, peer: _Side, to: asyncio.Transport) -> None:
        self._end_delivered = True
        if self._transport is None:
            to.close()
        elif peer._end_delivered:  # both have ended
            to.close()
            self._transport.close()
        else:
            to.write_eof()

    def _deliver_due(self) -> None:
        self._timer = None
        self.deliver()

    def _read_or_not(self) -> None:
        """Back-pressure: no more is read than a window's worth under way."""
        if self._transport is None or self._transport.is_closing() or self._has_ended:
            return
        window_bytes = self._proxy.wan.window_bytes
        if self._reads and self._held_bytes >= window_bytes:
            self._reads = False
            self._transport.pause_reading()
        elif not self._reads and self._held_bytes <= window_bytes // 2:
            self._reads = True
            self._transport.resume_reading()

    def _lose(self, loss: MessageLoss, data: bytes) -> bytes:
        proxy = self._proxy
        messages, lost = loss.num_messages, loss.num_lost
        loss.share = proxy.wan.lost
        try:
            return loss.pass_on(data)
        except UsageError as error:
            log.warning("%s", error)
            proxy.error = error
            self.abort()
            return b""
        finally:
            proxy.messages += loss.num_messages - messages
            proxy.messages_lost += loss.num_lost - lost

    def _drop(self) -> None:
        """What is on its way from here arrives nowhere."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._proxy.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._under_way.clear()
