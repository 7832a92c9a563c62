"""An authenticated caller that writes its own bytes: what a hostile trainer, or one with a bug, can send to a node."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

import torch
import zmq
from torch import Tensor

from learning_at_home.identity import Identity
from learning_at_home.tensors.frames import to_frames
from learning_at_home.transport.socket_options import secure_caller
from learning_at_home.wire.framing import decode_node, encode
from learning_at_home.wire.messages import (
    PROTOCOL_VERSIONS,
    Answers,
    Failure,
    Greeting,
    NodeMessage,
    Operation,
    Reply,
    Request,
    TensorSpec,
    Welcome,
    Work,
)

TIMEOUT_MS = 50_000  # a busy machine is slow; a hang ends before the test does


class RawCaller:
    """One DEALER with CURVE and a key of its own."""

    def __init__(
        self,
        public_key: bytes,
        endpoint: str,
        *,
        identity: Identity | None = None,
        receive_messages: int | None = None,
        receive_bytes: int | None = None,
    ) -> None:
        """`receive_messages` and `receive_bytes` bound what arrives unread: for a caller that does not read."""
        self.identity = identity or Identity.generate()
        self._unread: deque[Reply | Failure] = deque()  # of the last message
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.socket.setsockopt(zmq.SNDTIMEO, TIMEOUT_MS)
        self.socket.setsockopt(zmq.SNDHWM, 64)
        if receive_messages is not None:
            self.socket.setsockopt(zmq.RCVHWM, receive_messages)
        if receive_bytes is not None:
            self.socket.setsockopt(zmq.RCVBUF, receive_bytes)
        secure_caller(self.socket, self.identity, public_key)
        self.socket.connect(endpoint)

    def __enter__(self) -> RawCaller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def greeting(self) -> bytes:
        return encode(Greeting(PROTOCOL_VERSIONS, self.identity.public_key, "mallory/1"))

    def greet(self) -> RawCaller:
        """Greet and take the welcome."""
        self.socket.send(self.greeting())
        assert isinstance(self.receive()[0], Welcome)
        return self

    def send(self, parts: list[bytes]) -> None:
        self.socket.send_multipart(parts)

    def receive(self) -> tuple[NodeMessage, list[bytes]]:
        """The next message; a small tensor as a frame, too. Raises zmq.Again when none comes in time."""
        if not self._unread:
            header, *frames = self.socket.recv_multipart()
            message = decode_node(header)
            if not isinstance(message, Answers):
                return message, [message.data] if isinstance(message, Reply) and message.data else frames
            self._unread.extend(message.answers)
        answer = self._unread.popleft()
        return answer, [answer.data] if isinstance(answer, Reply) and answer.data else []

    def waits(self, timeout_ms: int) -> bool:
        """Whether a message is there within the time."""
        return bool(self._unread) or bool(self.socket.poll(timeout_ms))

    def answer_to(self, call_id: int | None) -> tuple[Reply | Failure, list[bytes]]:
        """The next answer that carries this id; others are dropped."""
        while True:
            message, frames = self.receive()
            if isinstance(message, Reply | Failure) and message.call_id == call_id:
                return message, frames


def request(
    project: str,
    uid: str,
    operation: Operation,
    *tensors: Tensor,
    call_id: int = 1,
    timeout_ms: int = 60_000,
    issued_ms: int | None = None,
    waited_ms: int = 0,
) -> list[bytes]:
    """The parts of a message with one piece of work. `issued_ms` and `waited_ms`: of one that is sent again."""
    framed = [to_frames(tensor) for tensor in tensors]
    work = Work(call_id, uid, operation, tuple(spec for spec, _ in framed))
    issued_ms = round(time.time() * 1000) if issued_ms is None else issued_ms
    header = encode(Request(project, issued_ms, timeout_ms, (work,), waited_ms))
    return [header, *(bytes(frame) for _, frames in framed for frame in frames)]


def tensor_of(spec: TensorSpec, frames: list[bytes]) -> Tensor:
    """The tensor of an answer, by other means than the product's."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return torch.frombuffer(bytearray(b"".join(frames)), dtype=dtype).view(spec.shape)
