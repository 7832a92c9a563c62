"""A node that answers whatever a test wants: a ROUTER with CURVE and the key that its announcement names.

Threaded; the script is called in the node's thread with everything a caller sends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import zmq

from learning_at_home.identity import Identity, z85
from learning_at_home.wire.framing import decode_caller, encode, split_frames
from learning_at_home.wire.messages import PROTOCOL_VERSIONS, Greeting, Request, Welcome, Work

SEND_TIMEOUT_MS = 200
# What to send to the caller for one piece of work: messages, each of any number of parts.
Script = Callable[[Work, list[bytes]], Iterable[Sequence[bytes]]]


def welcome(identity: Identity, **changes: object) -> bytes:
    """An honest welcome, but for the changes."""
    fields = {
        "version": PROTOCOL_VERSIONS[1],
        "public_key": identity.public_key,
        "agent": "mallory/1",
        "wall_ms": round(time.time() * 1000),
        "max_rows": 4_096,
        "max_bytes": 1 << 26,
        "codecs": ("none",),
        **changes,
    }
    return encode(Welcome(**fields))  # type: ignore[arg-type]


class HostileNode:
    """Serves from `with` until its end."""

    def __init__(
        self,
        identity: Identity,
        script: Script,
        *,
        on_greeting: Sequence[bytes] | None = None,
        zero_copy: bool = False,
    ) -> None:
        """`on_greeting`: the messages that answer a greeting, instead of an honest welcome. `zero_copy`: of answers."""
        self.identity = identity
        self.seen: list[Work] = []
        self._script = script
        self._copy = not zero_copy
        self._on_greeting = [welcome(identity)] if on_greeting is None else list(on_greeting)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, 1_000)
        self._router.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.CURVE_SERVER, 1)
        self._router.setsockopt(zmq.CURVE_SECRETKEY, z85(identity.curve_secret))
        self.port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hostile-node", daemon=True)

    def __enter__(self) -> HostileNode:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(5.0)
        assert not self._thread.is_alive()
        self._context.term()

    @property
    def stopping(self) -> bool:
        """For scripts without an end."""
        return self._stopping.is_set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._router.poll(20):
                    routing_id, header, *frames = self._router.recv_multipart()
                    self._take(routing_id, header, frames)
        finally:
            self._router.close()

    def _take(self, routing_id: bytes, header: bytes, frames: list[bytes]) -> None:
        message = decode_caller(header)
        if isinstance(message, Greeting):
            for answer in self._on_greeting:
                self._router.send_multipart([routing_id, answer])
            return
        assert isinstance(message, Request)
        groups = split_frames([work.tensors for work in message.work], frames, codec=message.codec, data=message.data)
        for work, tensors in zip(message.work, groups, strict=True):
            self.seen.append(work)
            mine = [bytes(frame) for parts in tensors for frame in parts]
            with contextlib.suppress(zmq.ZMQError):  # its victim has left, or takes nothing more
                for parts in self._script(work, mine):
                    self._router.send_multipart([routing_id, *parts], copy=self._copy)
