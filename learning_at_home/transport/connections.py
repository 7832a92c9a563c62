"""The caller's side: send work to many nodes at once, take the answers as they come.

Synchronous and torch-free. A thread leases an exchange (its own sockets) for one round of calls and gives it back; so a
socket is used by one thread at a time, nothing rests on thread-locals, and a lone call pays no hop to another thread.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import zmq

from learning_at_home.clock import Clock
from learning_at_home.errors import LearningAtHomeError, PeerUnreachable, UsageError, WireError
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.busy_poll import BusyPoll
from learning_at_home.transport.calls import Answer, Call, CallTable
from learning_at_home.transport.endpoints import EndpointBook
from learning_at_home.transport.link import Link
from learning_at_home.transport.links import MAX_LINKS, Links
from learning_at_home.transport.socket_options import POLLIN, has_input, poll
from learning_at_home.transport.turns import Aside, Turns
from learning_at_home.wire.framing import take_small
from learning_at_home.wire.messages import Answers, Codec, Reply, Request, Welcome, Work

WELCOME_S = 1.0  # without one by then, another of the peer's endpoints is tried where there is one
TRUSTED_S = 0.2  # a link that was used within this time is not asked whether it still lives
DRAINED_AT_ONCE = 256  # messages of one node, before deadlines are looked at again
BUSY_S = 1e-3  # a lone caller waits that long without sleeping, where answers come as quickly
MAX_WAIT_S = 1.0  # a wait looks at its clock again after this at the latest: a test's clock may have moved


class Exchange:
    """One round of calls, over sockets that nobody else uses meanwhile. Not for sharing between threads.

    Leased for the round: `with connections.exchange() as exchange`, or until `give_back`. Within the context the thread
    has a turn (turns.py), but not while it waits here, or `aside`.
    """

    def __init__(self, connections: Connections, links: Links, ids: Iterator[int], clock: Clock) -> None:
        self._connections = connections
        self.links = links
        self._clock = clock
        self._table = CallTable(ids)
        self._busy_poll = BusyPoll(BUSY_S)
        self.may_have_more = False  # see take_in
        self._polled: dict[zmq.Socket[bytes], Link] = {}  # each link twice: by its socket and by its monitor
        self._poll_items: list[tuple[zmq.Socket[bytes], int]] = []  # the same sockets, for zmq_poll

    @property
    def aside(self) -> Aside:
        """A context for whatever else the thread waits for in its round."""
        return self._connections.turns.aside

    def __enter__(self) -> Exchange:
        try:
            self._connections.turns.__enter__()
        except BaseException:  # an interrupt: nobody else would give it back
            self.give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.turns.__exit__(kind, error, trace)
        self.give_back()

    def give_back(self) -> None:
        """End the round: what is pending is given up."""
        self._table.abandon()
        self._polled, self._poll_items = {}, []
        if len(self.links.by_key) > MAX_LINKS:
            self.links.trim()
        late, self._table.late = self._table.late, 0
        self._connections._take_back(self, late)

    @property
    def pending(self) -> int:
        """Calls whose answer was not fetched yet."""
        return len(self._table.pending) + len(self._table.answers)

    @property
    def late(self) -> int:
        """Answers that came for calls of an earlier round, or after their deadline."""
        return self._table.late

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
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
    ) -> None:
        """Send one message with all these calls, which have their ids then. What goes wrong comes as their answers.

        Calls that were sent before go out under the same ids: all of one message must have been issued together.
        """
        now = self._clock.monotonic_s()
        self._table.add(peer, calls, now, round(self._clock.wall_s() * 1000), deadline)
        first = calls[0]
        work: tuple[Work, ...] = (Work(first.call_id, first.uid, first.operation, first.tensors),)
        frames = first.frames
        if len(calls) > 1:
            work = tuple([Work(call.call_id, call.uid, call.operation, call.tensors) for call in calls])
            frames = [frame for call in calls for frame in call.frames]
        data, frames = take_small(frames)
        timeout_ms = min(3_600_000, max(1, round((deadline - now) * 1000)))
        waited_ms = math.ceil((now - first.first_sent) * 1000)  # over 0 in whatever is sent again
        request = Request(project, first.issued_ms, timeout_ms, work, waited_ms, codec, reply_codec, data)
        try:
            self._link(peer, now).send(request, frames)
        except LearningAtHomeError as error:
            self._lose(peer, error)

    def next_answer(self, until: float) -> Answer | None:
        """The next answer of any call, or None when `until` (monotonic seconds) has passed or nothing is pending."""
        table = self._table
        while not table.answers:
            now = self._clock.monotonic_s()
            if now >= table.earliest:
                self._expire(now)
            elif not table.pending or (now >= until and not self._look_once_more()):
                return None
            elif now < until:
                self._wait(min(until, table.earliest) - now)
        return table.answers.popleft()

    def _look_once_more(self) -> bool:
        """Take in what is there when the time is over; whether an answer is. A node may send without end."""
        for _ in range(DRAINED_AT_ONCE):
            if self._table.answers or not self._wait(0.0):
                break
        return bool(self._table.answers)

    def take_in(self) -> list[Answer]:
        """The answers that there are now, for whoever waits by other means. `may_have_more`: call again soon."""
        self.may_have_more = False
        for socket, _ in poll(self._poll_items, 0):
            link = self._polled.get(socket)
            if link is None:
                continue  # dropped a moment ago, with its other socket
            if socket is link.socket:
                self.may_have_more |= self._drain(link)
            else:
                self._look(link)
        self._expire(self._clock.monotonic_s())
        answers = list(self._table.answers)
        self._table.answers.clear()
        return answers

    def open_calls(self) -> list[Call]:
        """Calls that have no answer yet."""
        return list(self._table.pending.values())

    def next_deadline(self) -> float:
        """When `take_in` must be called at the latest; infinity when nothing is pending."""
        return self._table.earliest

    def abandon(self) -> None:
        """Give up on what is pending: what still comes is late."""
        self._table.abandon()

    def _link(self, peer: PeerAddress, now: float) -> Link:
        """The link to a peer, watched. What waits on one that is replaced (its peer has moved) ends."""
        old = self.links.by_key.get(peer.public_key)
        if old is not None and old.peer is peer and now - old.used <= TRUSTED_S and not self._polled:  # nearly always
            self.links.by_key.move_to_end(peer.public_key)
            old.used = now
            self._polled = {old.socket: old, old.monitor: old}
            self._poll_items = old.poll_items
            return old
        if old is not None:
            moved = old.peer is not peer and old.peer.endpoints != peer.endpoints
            if old.socket in self._polled:
                if not moved:
                    return old
                self._drain(old)
                self._lose(old.peer, PeerUnreachable(f"it has moved to {list(peer.endpoints)}", peer=peer.name))
            elif moved or (now - old.used > TRUSTED_S and (old.lost() is not None or _has_no_way(old, now))):
                self.links.drop(peer.public_key, now)
        link = self.links.link(peer, now)
        link.used = now
        self._polled[link.socket] = self._polled[link.monitor] = link
        self._poll_items = self._poll_items + link.poll_items if self._poll_items else link.poll_items
        return link

    def _wait(self, timeout_s: float) -> bool:
        """Take in what arrives within the time; whether anything did."""
        alone = self._connections.num_leased == 1
        look = self._busy_poll.poll if alone else poll  # several that spin would take each other's cores
        if timeout_s > 0:
            with self.aside:
                ready = look(self._poll_items, math.ceil(min(timeout_s, MAX_WAIT_S) * 1000))
        else:
            ready = poll(self._poll_items, 0)
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
        return all(has_input(link.socket) and self._take(link) for _ in range(DRAINED_AT_ONCE))

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
        now = self._clock.monotonic_s()
        if isinstance(message, Reply):
            self._table.replied(link.peer, message, frames, now, link.chunk_bytes)
            return True
        if frames:
            self._lose(link.peer, WireError("frames follow a header that has none", peer=link.peer.name))
            return False
        if isinstance(message, Welcome):
            self.links.welcomed(link, now)
            return True
        if isinstance(message, Answers):
            for answer in message.answers:
                if isinstance(answer, Reply):
                    self._table.replied(link.peer, answer, (), now)
                elif answer.call_id is not None:
                    self._table.failed(link.peer, answer, now)
                else:
                    self._lose(link.peer, WireError("a failure without a call among answers", peer=link.peer.name))
                    return False
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
            self._polled = kept
            self._poll_items = [(socket, POLLIN) for socket in kept]
        self.links.drop(peer.public_key, self._clock.monotonic_s())


def _has_no_way(link: Link, now: float) -> bool:
    """Whether a connection hangs, as one does that a firewall swallows, while the peer has other endpoints."""
    several = len(link.peer.endpoints) > 1
    return several and not link.welcomed and now - link.begun > WELCOME_S and not has_input(link.socket)


MakeExchange = Callable[["Connections", Links, Iterator[int], Clock], Exchange]


class Connections:
    """All connections of a calling process: a pool of exchanges. Thread-safe."""

    def __init__(self, identity: Identity, clock: Clock, *, unencrypted: bool = False) -> None:
        """`unencrypted`: connect to nodes that take no encrypted connections, too. For trusted machines in one rack."""
        self._unencrypted = unencrypted
        self._identity = identity
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_536)
        # From anywhere: another process with our key counts elsewhere. next() is atomic under the interpreter lock.
        self._ids = itertools.count(secrets.randbits(48))
        self.turns = Turns()
        self._lock = threading.Lock()
        self._idle: list[Exchange] = []
        self.num_leased = 0  # to be read only
        self._closed = False
        self._pid = os.getpid()
        self._endpoints = EndpointBook()
        self._make_exchange: MakeExchange = Exchange
        self.late_answers = 0

    def exchange(self) -> Exchange:
        """Leased for one round of calls until the end of its context.

        Raises UsageError after close, or in a forked child.
        """
        if self._pid != os.getpid():
            raise UsageError("these connections belong to the parent process; open new ones after a fork")
        with self._lock:
            if self._closed:
                raise UsageError("the connections are closed")
            self.num_leased += 1
            if self._idle:
                return self._idle.pop()
        links = Links(self._context, self._identity, self._unencrypted, self._endpoints)
        return self._make_exchange(self, links, self._ids, self._clock)

    def make_exchanges(self, make: MakeExchange) -> None:
        """From now on they are made by this, as the test kit has some of its own; those in the pool are closed."""
        with self._lock:
            self._make_exchange = make
            idle, self._idle = self._idle, []
        for exchange in idle:
            exchange.links.close()

    def close(self) -> None:
        """Close what is idle now, what is leased when it comes back. May be called twice."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            last = not self.num_leased
        if self._pid != os.getpid():
            return  # sockets belong to the parent process
        for exchange in idle:
            exchange.links.close()
        if last:
            self._context.term()

    def _take_back(self, exchange: Exchange, late: int) -> None:
        with self._lock:
            self.num_leased -= 1
            self.late_answers += late
            if not self._closed:
                self._idle.append(exchange)
                return
            last = not self.num_leased
        exchange.links.close()
        if last:
            self._context.term()
