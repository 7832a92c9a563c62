"""A wire between a caller and a node that a test can cut: TCP through a port of its own, as relays and routers do it.

Threaded. It counts bytes and cannot read them; which of them were the answer, a test tells by their number.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Literal

Direction = Literal["to the node", "to the caller"]


class TcpProxy:
    """Listens from `with` to its end."""

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        """`port`: the node's. `delay_s`: how long each byte is on its way, there or back; as many as come."""
        self._delay_s = delay_s
        self.cuts = 0
        self.num_connections = 0
        self._node = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._direction: Direction | None = None
        self._after_bytes = 0
        self._times = 0
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> TcpProxy:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5.0)
            assert not thread.is_alive()

    def cut_later(self, direction: Direction, after_bytes: int, times: int = 1) -> None:
        """Cut a connection once more than so many bytes from now on went this way; the byte over it does not arrive."""
        with self._lock:
            self._direction, self._after_bytes, self._times = direction, after_bytes, times
            self._passed: dict[socket.socket, int] = {}

    def cut(self) -> None:
        """Cut every connection now."""
        with self._lock:
            pairs, self._open = self._open, []
        for pair in pairs:
            self.cuts += 1
            _close(pair)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                node = socket.create_connection(self._node)
            except OSError:
                caller.close()
                continue
            pair = (caller, node)
            with self._lock:
                self.num_connections += 1
                self._open.append(pair)
            self._start(self._pump, caller, node, "to the node", pair)
            self._start(self._pump, node, caller, "to the caller", pair)

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        direction: Direction,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        arriving: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        if self._delay_s:
            self._start(self._deliver, arriving, target)
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self._is_over(source, direction, len(data)):
                    break
                if self._delay_s:
                    arriving.put((time.monotonic() + self._delay_s, data))
                else:
                    target.sendall(data)
        arriving.put((0.0, b""))
        _close(pair)

    def _deliver(self, arriving: queue.SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (arrives := arriving.get())[1]:
                time.sleep(max(0.0, arrives[0] - time.monotonic()))
                target.sendall(arrives[1])

    def _is_over(self, source: socket.socket, direction: Direction, size: int) -> bool:
        with self._lock:
            if direction != self._direction or not self._times:
                return False
            self._passed[source] = self._passed.get(source, 0) + size
            if self._passed[source] <= self._after_bytes:
                return False
            self._times -= 1
            self.cuts += 1
            return True

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="tcp-proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
