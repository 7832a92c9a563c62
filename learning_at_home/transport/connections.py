"""The caller's side: send work to many nodes at once, take the answers as they come.

Synchronous and torch-free. A thread leases a channel (its own sockets) for one exchange and gives it back; so a socket
is used by one thread at a time, nothing rests on thread-locals, and no call pays a hop through another thread.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import zmq

from learning_at_home.clock import Clock
from learning_at_home.errors import LearningAtHomeError, PeerUnreachable, UsageError, WireError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.calls import Answer, Call, CallTable
from learning_at_home.transport.link import Link
from learning_at_home.version import AGENT
from learning_at_home.wire.messages import Failure, Request, Work

MAX_LINKS_PER_CHANNEL = 128  # of four descriptors each: half of a process's usual 1,024
MONITOR_INTERVAL_S = 0.05  # how often a wait looks for lost connections


class Channel:
    """The links of one leaseholder, by peer."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity) -> None:
        self._context = context
        self._identity = identity
        self.links: OrderedDict[bytes, Link] = OrderedDict()

    def link(self, peer: PeerAddress) -> Link:
        """The live link to a peer, made when there is none. Raises PeerUnreachable."""
        link = self.links.get(peer.public_key)
        if link is not None:
            if link.peer.endpoints == peer.endpoints and link.lost() is None:
                self.links.move_to_end(peer.public_key)
                return link
            self.drop(peer.public_key)
        link = Link(self._context, self._identity, peer, AGENT)
        self.links[peer.public_key] = link
        return link

    def trim(self) -> None:
        """Close the least recently used links over the limit. Between exchanges: one under way may wait on any link."""
        while len(self.links) > MAX_LINKS_PER_CHANNEL:
            self.links.popitem(last=False)[1].close()

    def drop(self, public_key: bytes) -> None:
        if link := self.links.pop(public_key, None):
            link.close()

    def close(self) -> None:
        while self.links:
            self.links.popitem()[1].close()


class Exchange:
    """One round of calls over a leased channel. Not for sharing between threads."""

    def __init__(self, channel: Channel, ids: Iterator[int], clock: Clock) -> None:
        self._channel = channel
        self._clock = clock
        self._table = CallTable(ids)
        self._poller = zmq.Poller()
        self._polled: dict[zmq.Socket[bytes], Link] = {}
        self._next_monitor = 0.0

    @property
    def pending(self) -> int:
        """Calls whose answer was not fetched yet."""
        return self._table.num_open

    @property
    def late(self) -> int:
        """Answers that came for calls of an earlier exchange, or after their deadline."""
        return self._table.late

    def send(self, peer: PeerAddress, project: str, calls: Sequence[Call], deadline: float) -> list[int]:
        """Send one message with all these calls; returns their ids. What goes wrong comes as each call's answer."""
        now = self._clock.monotonic_s()
        call_ids = self._table.add(peer, calls, now, deadline)
        work = tuple(
            Work(call_id, call.uid, call.operation, call.tensors) for call_id, call in zip(call_ids, calls, strict=True)
        )
        timeout_ms = min(3_600_000, max(1, round((deadline - now) * 1000)))
        self._forget_dead_link(peer)
        try:
            link = self._channel.link(peer)
            self._poll(link)
            link.send(
                Request(project, round(self._clock.wall_s() * 1000), timeout_ms, work),
                [frame for call in calls for frame in call.frames],
            )
        except LearningAtHomeError as error:
            self._lose(peer, error)
        return call_ids

    def next_answer(self, until: float) -> Answer | None:
        """The next answer of any call, or None when `until` (monotonic seconds) has passed or nothing is pending."""
        while True:
            if answer := self._table.pop():
                return answer
            now = self._clock.monotonic_s()
            for peer in self._table.expire(now):
                self._unlink(peer)  # drops what is queued for a silent peer, and the hold on its tensors
            if self._table.num_open == 0 or (now >= until and not self._receive(0.0)):
                return self._table.pop()
            if now < until:
                wake = min(until, self._table.next_deadline(), now + MONITOR_INTERVAL_S)
                self._receive(max(0.0, wake - now))

    def close(self) -> None:
        """Abandon what is pending."""
        self._table.abandon()

    def _forget_dead_link(self, peer: PeerAddress) -> None:
        """End what waits on a link that the channel is about to replace: one that was lost, or whose peer has moved."""
        link = self._channel.links.get(peer.public_key)
        if link is None or link.socket not in self._polled:
            return
        error = link.lost()
        if error is None and link.peer.endpoints != peer.endpoints:
            error = PeerUnreachable(f"it has moved to {list(peer.endpoints)}", peer=peer.name)
        if error is not None:
            self._drain(link)
            self._lose(link.peer, error)

    def _poll(self, link: Link) -> None:
        if link.socket not in self._polled:
            self._polled[link.socket] = link
            self._poller.register(link.socket, zmq.POLLIN)

    def _receive(self, timeout_s: float) -> bool:
        """Take in what arrives within the time; whether anything did."""
        ready = self._poller.poll(math.ceil(timeout_s * 1000)) if self._polled else []
        for socket, _ in ready:
            self._drain(self._polled[socket])
        now = self._clock.monotonic_s()
        if not ready or now >= self._next_monitor:
            self._next_monitor = now + MONITOR_INTERVAL_S
            for link in list(self._polled.values()):
                if error := link.lost():
                    self._drain(link)  # answers that arrived before the end still count
                    self._lose(link.peer, error)
        return bool(ready)

    def _drain(self, link: Link) -> None:
        try:
            while received := link.receive():
                message, frames = received
                now = self._clock.monotonic_s()
                if isinstance(message, Failure):
                    self._table.failed(link.peer, message, now)
                    if message.call_id is None:  # it refuses what the connection says as a whole: begin anew
                        self._unlink(link.peer)
                        return
                else:
                    self._table.replied(link.peer, message, frames, now)
        except WireError as error:
            self._lose(link.peer, error)

    def _lose(self, peer: PeerAddress, error: LearningAtHomeError) -> None:
        self._unlink(peer)
        self._table.lost(peer, error, self._clock.monotonic_s())

    def _unlink(self, peer: PeerAddress) -> None:
        for socket, link in list(self._polled.items()):
            if link.peer.public_key == peer.public_key:
                self._poller.unregister(socket)
                del self._polled[socket]
        self._channel.drop(peer.public_key)


class Connections:
    """All connections of a calling process: a pool of channels. Thread-safe."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_536)
        self._ids = itertools.count(1)  # next() of a count is atomic under the interpreter lock
        self._lock = threading.Lock()
        self._idle: list[Channel] = []
        self._leased = 0
        self._closed = False
        self._pid = os.getpid()
        self.late_answers = 0

    @contextlib.contextmanager
    def exchange(self) -> Iterator[Exchange]:
        """Lease a channel for one round of calls. Raises UsageError after close, or in a forked child."""
        channel = self._lease()
        exchange = Exchange(channel, self._ids, self._clock)
        try:
            yield exchange
        finally:
            exchange.close()
            self._give_back(channel, exchange.late)

    def close(self) -> None:
        """Close all idle channels now, leased ones when they come back. May be called twice."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            last = not self._leased
        if self._pid != os.getpid():
            return  # sockets belong to the parent process
        for channel in idle:
            channel.close()
        if last:
            self._context.term()

    def _lease(self) -> Channel:
        if self._pid != os.getpid():
            raise UsageError("these connections belong to the parent process; open new ones after a fork")
        with self._lock:
            if self._closed:
                raise UsageError("the connections are closed")
            self._leased += 1
            if self._idle:
                return self._idle.pop()
        return Channel(self._context, self._identity)

    def _give_back(self, channel: Channel, late: int) -> None:
        channel.trim()
        with self._lock:
            self._leased -= 1
            self.late_answers += late
            closed = self._closed
            last = closed and not self._leased
            if not closed:
                self._idle.append(channel)
        if closed:
            channel.close()
        if last:
            self._context.term()
