"""The caller's side: send work to many nodes at once, take the answers as they come.

Synchronous and torch-free. A thread leases a channel (its own sockets) for one exchange and gives it back; so a socket
is used by one thread at a time, nothing rests on thread-locals, and no call pays a hop through another thread.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import TracebackType

import zmq

from learning_at_home.clock import Clock
from learning_at_home.errors import LearningAtHomeError, PeerUnreachable, UsageError, WireError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.calls import Answer, Call, CallTable
from learning_at_home.transport.link import Link
from learning_at_home.version import AGENT
from learning_at_home.wire.messages import Codec, Reply, Request, Welcome, Work

MAX_LINKS_PER_CHANNEL = 128  # of four descriptors each: half of a process's usual 1,024
TRUSTED_S = 0.2  # a link that was used within this time is not asked whether it still lives
DRAINED_AT_ONCE = 256  # messages of one node, before deadlines are looked at again
MAX_WAIT_S = 1.0  # a wait looks at its clock again after this at the latest: a test's clock may have moved


class Channel:
    """The links of one leaseholder, by peer."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], identity: Identity, unencrypted: bool) -> None:
        self._context = context
        self._identity = identity
        self._unencrypted = unencrypted
        self.links: OrderedDict[bytes, Link] = OrderedDict()

    def link(self, peer: PeerAddress) -> Link:
        """The link to a peer, made when there is none to where the peer is now. Raises PeerUnreachable."""
        link = self.links.get(peer.public_key)
        if link is not None:
            if link.peer is peer or link.peer.endpoints == peer.endpoints:
                self.links.move_to_end(peer.public_key)
                return link
            self.drop(peer.public_key)
        link = Link(self._context, self._identity, peer, AGENT, self._unencrypted)
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
    """One round of calls over a channel that is leased for it. Not for sharing between threads."""

    def __init__(self, connections: Connections, channel: Channel, ids: Iterator[int], clock: Clock) -> None:
        self._connections = connections
        self._channel = channel
        self._clock = clock
        self._table = CallTable(ids)
        self.may_have_more = False  # see take_in
        self._poller: zmq.Poller | None = None  # the link's own while there is only one
        self._polled: dict[zmq.Socket[bytes], Link] = {}  # each link twice: by its socket and by its monitor

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.abandon()
        self._connections._give_back(self._channel, self._table.late)

    @property
    def pending(self) -> int:
        """Calls whose answer was not fetched yet."""
        return self._table.num_open

    @property
    def late(self) -> int:
        """Answers that came for calls of an earlier exchange, or after their deadline."""
        return self._table.late

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]:
        """What to watch for an event loop that calls `take_in` instead of waiting in `next_answer`."""
        return list(self._polled)

    def send(
        self,
        peer: PeerAddress,
        project: str,
        calls: Sequence[Call],
        deadline: float,
        codec: Codec = "none",
        reply_codec: Codec = "none",
    ) -> list[int]:
        """Send one message with all these calls; returns their ids. What goes wrong comes as each call's answer.

        Calls that were sent before go out under the same ids: all of one message must have been issued together.
        """
        now = self._clock.monotonic_s()
        self._table.add(peer, calls, now, round(self._clock.wall_s() * 1000), deadline)
        first = calls[0]
        work = tuple([Work(call.call_id, call.uid, call.operation, call.tensors) for call in calls])
        frames = first.frames if len(calls) == 1 else [frame for call in calls for frame in call.frames]
        timeout_ms = min(3_600_000, max(1, round((deadline - now) * 1000)))
        waited_ms = math.ceil((now - first.first_sent) * 1000)  # over 0 in whatever is sent again
        request = Request(project, first.issued_ms, timeout_ms, work, waited_ms, codec, reply_codec)
        try:
            self._link(peer, now).send(request, frames)
        except LearningAtHomeError as error:
            self._lose(peer, error)
        return [call.call_id for call in calls]

    def next_answer(self, until: float) -> Answer | None:
        """The next answer of any call, or None when `until` (monotonic seconds) has passed or nothing is pending."""
        while True:
            if answer := self._table.pop():
                return answer
            now = self._clock.monotonic_s()
            self._expire(now)
            if self._table.num_open == 0 or (now >= until and not self._wait(0.0)):
                return self._table.pop()
            if now < until:
                self._wait(max(0.0, min(until, self._table.next_deadline()) - now))

    def take_in(self) -> list[Answer]:
        """The answers that there are now, for whoever waits by other means. `may_have_more`: call again soon."""
        self.may_have_more = False
        for link in dict.fromkeys(self._polled.values()):
            self.may_have_more |= self._drain(link)
            self._look(link)
        self._expire(self._clock.monotonic_s())
        answers = []
        while answer := self._table.pop():
            answers.append(answer)
        return answers

    def open_calls(self) -> list[Call]:
        """Calls that have no answer yet."""
        return self._table.open_calls()

    def next_deadline(self) -> float:
        """When `take_in` must be called at the latest; infinity when nothing is pending."""
        return self._table.next_deadline()

    def abandon(self) -> None:
        """Give up on what is pending: what still comes is late."""
        self._table.abandon()

    def _link(self, peer: PeerAddress, now: float) -> Link:
        """The link to a peer, watched. What waits on one that is replaced (its peer has moved) ends."""
        old = self._channel.links.get(peer.public_key)
        if old is not None:
            moved = old.peer is not peer and old.peer.endpoints != peer.endpoints
            if old.socket in self._polled:
                if not moved:
                    return old
                self._drain(old)
                self._lose(old.peer, PeerUnreachable(f"it has moved to {list(peer.endpoints)}", peer=peer.name))
            elif moved or (now - old.used > TRUSTED_S and old.lost() is not None):
                self._channel.drop(peer.public_key)
        link = self._channel.link(peer)
        link.used = now
        self._watch(link)
        return link

    def _watch(self, link: Link) -> None:
        self._polled[link.socket] = self._polled[link.monitor] = link
        if len(self._polled) == 2:
            self._poller = link.poller
            return
        self._poller = zmq.Poller()
        for socket in self._polled:
            self._poller.register(socket, zmq.POLLIN)

    def _wait(self, timeout_s: float) -> bool:
        """Take in what arrives within the time; whether anything did."""
        ready = self._poller.poll(math.ceil(min(timeout_s, MAX_WAIT_S) * 1000)) if self._poller is not None else []
        for socket, _ in ready:
            link = self._polled.get(socket)
            if link is None:
                continue  # dropped a moment ago, with its other socket
            if socket is link.socket:
                self._take(link)
            else:
                self._look(link)
        return bool(ready)

    def _look(self, link: Link) -> None:
        """What the monitor tells; answers that arrived before the end still count."""
        if error := link.lost():
            self._drain(link)
            self._lose(link.peer, error)

    def _drain(self, link: Link) -> bool:
        """Take in what there is, up to a bound: a node may send without end. Whether there may be more."""
        return all(self._take(link) for _ in range(DRAINED_AT_ONCE))

    def _take(self, link: Link) -> bool:
        """Take in one message, if there is one; whether there may be more."""
        try:
            received = link.receive()
        except WireError as error:
            self._lose(link.peer, error)
            return False
        if received is None:
            return False
        message, frames = received
        if isinstance(message, Welcome):
            return True
        now = self._clock.monotonic_s()
        if isinstance(message, Reply):
            self._table.replied(link.peer, message, frames, now)
            return True
        self._table.failed(link.peer, message, now)
        if message.call_id is None:  # it refuses what the connection says as a whole: begin anew
            self._unlink(link.peer)
            return False
        return True

    def _expire(self, now: float) -> None:
        for peer in self._table.expire(now):
            self._unlink(peer)  # drops what is queued for a silent peer, and the hold on its tensors

    def _lose(self, peer: PeerAddress, error: LearningAtHomeError) -> None:
        self._unlink(peer)
        self._table.lost(peer, error, self._clock.monotonic_s())

    def _unlink(self, peer: PeerAddress) -> None:
        kept = {socket: link for socket, link in self._polled.items() if link.peer.public_key != peer.public_key}
        if len(kept) < len(self._polled):
            self._polled, self._poller = {}, None
            for link in dict.fromkeys(kept.values()):
                self._watch(link)
        self._channel.drop(peer.public_key)


class Connections:
    """All connections of a calling process: a pool of channels. Thread-safe."""

    def __init__(self, identity: Identity, clock: Clock, *, unencrypted: bool = False) -> None:
        """`unencrypted`: connect to nodes that take no encrypted connections, too. For trusted machines in one rack."""
        self._unencrypted = unencrypted
        self._identity = identity
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_536)
        # From anywhere: another process with our key counts elsewhere. next() is atomic under the interpreter lock.
        self._ids = itertools.count(secrets.randbits(48))
        self._lock = threading.Lock()
        self._idle: list[Channel] = []
        self._leased = 0
        self._closed = False
        self._pid = os.getpid()
        self.late_answers = 0

    def exchange(self) -> Exchange:
        """A channel, leased for one round of calls until the end of its context.

        Raises UsageError after close, or in a forked child.
        """
        return Exchange(self, self._lease(), self._ids, self._clock)

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
        return Channel(self._context, self._identity, self._unencrypted)

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
