"""Guards a ROUTER against senders whose messages never end, or come faster than the node reads them.

libzmq counts whole messages against its high-water mark, keeps the parts of an unfinished one without bound, and has no
call to drop one peer. So the kernel's count of the bytes that each connection received is compared with what the node
read of it, and a connection that holds too much is shut down. Why so: docs/decisions/0005-inflow-guard.md.

For the thread that owns the ROUTER. Where the kernel does not count (not Linux) it says so once and does nothing.
"""

from __future__ import annotations

import logging
import math
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from learning_at_home.transport.inflow_accounts import FRAME_BYTES, Cut, InflowAccounts, InflowLimits
from learning_at_home.transport.socket_options import has_input
from learning_at_home.transport.tcp_counters import TcpConnection, TcpCounters, counts_received_bytes, neighbourhood

log = logging.getLogger(__name__)

LOOK_S = 0.02  # between looks while much arrives or is held: at 1 GB/s 20 MB come in this time
QUIET_LOOK_S = 0.05  # while little does
LOOK_S_PER_CONNECTION = 25e-6  # a look takes about 1 µs for each: a twentieth of the time, however many there are
MUCH_BYTES = 256 * 1024
LOG_S = 10.0  # an attack does not fill the log

_EVENT = struct.Struct("=HI")  # type and descriptor, as libzmq's monitor says them


@dataclass(slots=True)
class _Watched:
    connection: TcpConnection
    received: int = 0  # bytes, as counted at the last look


class InflowGuard:
    """Made before the ROUTER is bound, closed before it is closed, told of every message that is read.

    guard = InflowGuard(router)
    while serving:
        poller.poll(guard.timeout_ms(now))
        # read what there is; for each message: guard.received(header, num_bytes, num_frames)
        cuts = guard.look(now)
    guard.close()
    """

    def __init__(self, router: zmq.Socket[bytes], limits: InflowLimits | None = None) -> None:
        self._router = router
        self._accounts = InflowAccounts(limits or InflowLimits())
        self._watched: dict[int, _Watched] = {}  # by descriptor; libzmq owns them
        self._taken: defaultdict[int, int] = defaultdict(int)  # by descriptor, since the last look
        self.next_look = 0.0  # monotonic; to be read only
        self.held_bytes = 0  # what libzmq held for all connections at the last look
        self._untold: list[Cut] = []
        self._next_log = 0.0
        self.works = counts_received_bytes()
        if not self.works:
            log.warning(
                "this system does not count the bytes of a connection (Linux 4.12 does): a message that never ends can "
                "fill this machine's memory; let only peers connect that you trust"
            )
            return
        self._counters = TcpCounters()
        self._port = 0
        endpoint = f"inproc://inflow-{id(self):x}"
        router.monitor(endpoint, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor: zmq.Socket[bytes] = router.context.socket(zmq.PAIR)
        # Without a bound: libzmq's I/O thread would stand still until there is room. Every look empties it.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(endpoint)

    @property
    def num_connections(self) -> int:
        """How many were open at the last look."""
        return len(self._watched)

    def received(self, frame: zmq.Frame, num_bytes: int, num_frames: int) -> None:
        """A whole message was read: any frame of it, and bytes and number of its frames without the routing id's."""
        self._taken[int(frame.get(zmq.SRCFD))] += num_bytes + FRAME_BYTES * num_frames

    def end(self, frame: zmq.Frame) -> bool:
        """Cut off who sent this frame, for what is no mistake; False when it has left, or came since the last look.

        The address is compared: the frame may have waited while its descriptor's number passed to someone else.
        """
        descriptor = int(frame.get(zmq.SRCFD))
        watched = self._watched.get(descriptor)
        if watched is None or watched.connection.peer_host != frame.get("Peer-Address"):
            return False
        self._forget(descriptor)
        return self._counters.shut_down(watched.connection)

    def timeout_ms(self, now: float) -> int:
        """Until the next look is due; -1 when there will be none."""
        return max(0, math.ceil((self.next_look - now) * 1000)) if self.works else -1

    def look(self, now: float) -> Sequence[Cut]:
        """Count and cut, when it is due. Read first what can be read, so that it is not held against its sender."""
        if now < self.next_look or not self.works:
            return ()
        self._follow(now)
        arrived = self._count(now)
        much = max(arrived, self._accounts.held_bytes) > MUCH_BYTES
        self.next_look = now + max(LOOK_S if much else QUIET_LOOK_S, LOOK_S_PER_CONNECTION * len(self._watched))
        if self._accounts.exceed_bounds():
            for descriptor in self._accounts.holding():
                self._count_closely(descriptor, now)
        cuts = [cut for cut in self._accounts.cut(now) if self._shut_down(cut)]
        self.held_bytes = self._accounts.held_bytes
        self._tell(cuts, now)
        return cuts

    def close(self) -> None:
        """Stop watching. In the ROUTER's thread; may be called twice."""
        if self.works:
            self.works = False
            self._router.monitor(None, 0)  # first: an event that nobody can take would stop libzmq's I/O thread
            self._monitor.close()
            self._counters.close()

    def _follow(self, now: float) -> None:
        """Take in which connections began and ended.

        libzmq tells the end before it closes the descriptor, so whoever gets the number next is told of later.
        """
        while has_input(self._monitor):
            kind, descriptor = _EVENT.unpack(self._monitor.recv_multipart()[0])
            self._forget(descriptor)
            if kind == zmq.EVENT_ACCEPTED:
                self._watch(descriptor, now)

    def _watch(self, descriptor: int, now: float) -> None:
        self._port = self._port or int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        connection = self._counters.find(descriptor)
        # another port: it has ended already, and the number is that of some other connection of this process
        if connection is not None and connection.local_port == self._port:
            self._watched[descriptor] = _Watched(connection)
            self._accounts.opened(descriptor, neighbourhood(connection.peer_host), now)

    def _forget(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, None):
            self._accounts.closed(descriptor)

    def _count(self, now: float) -> int:
        """Bring all accounts up to date; how many bytes have arrived since the last look."""
        arrived = 0
        received_bytes, taken = self._counters.received_bytes, self._taken
        for descriptor, watched in list(self._watched.items()):
            received = received_bytes(descriptor)
            if received == watched.received and descriptor not in taken:
                continue
            if received is None:
                self._forget(descriptor)
                continue
            arrived += received - watched.received
            watched.received = received
            self._accounts.update(descriptor, received, taken.get(descriptor, 0), now)
        taken.clear()
        return arrived

    def _count_closely(self, descriptor: int, now: float) -> None:
        """Leave out what still waits in the kernel: it is not in libzmq's memory, and the kernel bounds it."""
        watched = self._watched[descriptor]
        if self._counters.is_open(watched.connection):
            watched.received -= self._counters.unread_bytes(descriptor)  # the next look finds and counts these again
            self._accounts.update(descriptor, watched.received, 0, now)
        else:
            self._forget(descriptor)

    def _shut_down(self, cut: Cut) -> bool:
        return self._counters.shut_down(self._watched.pop(cut.connection).connection)

    def _tell(self, cuts: Sequence[Cut], now: float) -> None:
        self._untold += [cut for cut in cuts if cut.reason != "idle"]
        if self._untold and now >= self._next_log:
            log.warning(
                "cut off %d connections from %s with %d MiB of messages that did not end or came too fast",
                len(self._untold),
                ", ".join(sorted({cut.neighbourhood for cut in self._untold})[:5]),
                sum(cut.held_bytes for cut in self._untold) // 2**20,
            )
            self._untold.clear()
            self._next_log = now + LOG_S
