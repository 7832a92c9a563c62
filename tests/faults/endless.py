"""Attackers that each send one message without an end, as fast as they can, over connections of their own."""

from __future__ import annotations

import contextlib
import selectors
import threading
from types import TracebackType

from learning_at_home.peer_address import PeerAddress
from learning_at_home.wire.framing import encode
from learning_at_home.wire.messages import PROTOCOL_VERSIONS, Greeting
from tests.faults.curve_wire import MORE, CurveWire


class Endless:
    """They attack from `with` to its end, in a thread of their own; who is cut off comes again."""

    def __init__(self, address: PeerAddress, part_bytes: int, num_connections: int) -> None:
        self.sent_bytes = 0
        self.cut_off = 0
        self._num_connections = num_connections
        self._part = bytes(part_bytes)
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endless", daemon=True)

    def __enter__(self) -> Endless:
        for _ in range(self._num_connections):
            self._connect()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        for key in list(self._selector.get_map().values()):
            key.data.close()
        self._selector.close()

    def _connect(self) -> None:
        wire = CurveWire(self._address.public_key, self._address.endpoints[0])
        wire.queue(encode(Greeting(PROTOCOL_VERSIONS, wire.identity.public_key, "mallory/1")))
        self._selector.register(wire.socket, selectors.EVENT_WRITE, wire)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.05):
                wire: CurveWire = key.data
                try:
                    if wire.is_idle:
                        wire.queue(self._part, MORE)
                    self.sent_bytes += wire.pump()
                except ConnectionError:
                    self.cut_off += 1
                    self._selector.unregister(wire.socket)
                    wire.close()
                    with contextlib.suppress(OSError):
                        self._connect()
