"""The least that a remote `nop` expert can cost in Python: a tensor there and back through autograd, and nothing else.

Run by benchmarks.sides. A DEALER here and a ROUTER in another process, CURVE, a msgpack header with the tensor's bytes,
autograd's node on this side and inference mode on the other, a check for finite numbers on both. No queue, no batches,
no deadlines, retries or statistics, no admission, no directory: what those cost is what is ours beyond this.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
import zmq
from torch import Tensor

from benchmarks.local_expert import assert_close
from benchmarks.worker import Work, seconds_per_call, serve, settings_of
from benchmarks.workers.zeromq_echo import SERVER, Pair, answering_router
from learning_at_home.tensors.small import are_finite, bytes_of, from_bytes_checked
from learning_at_home.wire.messages import TensorSpec

WAIT_MS = 10_000


class Message(msgspec.Struct):
    """What goes there, and what comes back."""

    call_id: int
    uid: str
    spec: TensorSpec
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


@dataclass(frozen=True, slots=True)
class Settings:
    hidden_size: int


class BareHop:
    """The calling side, and the process that answers it."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._hidden_size = settings.hidden_size
        self._pair = Pair("benchmarks.workers.bare_hop", plain=False)
        self._to_train = torch.empty(0, requires_grad=True)

    def check(self) -> None:
        """What comes back is what went out."""
        rows = torch.randn(3, self._hidden_size)
        assert_close("the output", self._call(rows).detach(), rows)

    def ready(self) -> None:
        """It waits for nobody."""

    def measure(self, work: Work) -> float:
        rows = torch.randn(work.rows, self._hidden_size)
        return seconds_per_call(lambda: self._call(rows), work)

    def close(self) -> None:
        self._pair.close()

    def _call(self, rows: Tensor) -> Tensor:
        y: Tensor = _Hop.apply(rows, self._to_train, self._pair.dealer)  # type: ignore[no-untyped-call]
        return y


class _Hop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor, dealer: zmq.Socket[bytes]) -> Tensor:
        ctx.save_for_backward(rows)
        spec = TensorSpec("float32", tuple(rows.shape))
        data = bytes_of(rows)
        assert data is not None, "it is small"
        dealer.send(_encode(Message(1, "nop0.0", spec, data)))
        assert are_finite(rows)
        assert dealer.poll(WAIT_MS), "no answer"
        answer = _decoder.decode(dealer.recv())
        tensor, finite = from_bytes_checked(answer.spec, answer.data)
        assert finite
        return tensor


def answer_forever() -> None:
    """The answering process: bind, say where, and answer with what came."""
    torch.set_num_threads(1)
    router = answering_router()
    module = torch.nn.Identity()
    while True:
        routing_id = router.recv()
        message = _decoder.decode(router.recv())
        rows, finite = from_bytes_checked(message.spec, message.data)
        assert finite
        with torch.inference_mode():
            answer = module(rows)
        data = bytes_of(answer)
        assert data is not None, "it is small"
        router.send(routing_id, zmq.SNDMORE)
        router.send(_encode(Message(message.call_id, message.uid, message.spec, data)))


if __name__ == "__main__":
    if sys.argv[1:] == [SERVER]:
        answer_forever()
    else:
        serve(lambda: BareHop(settings_of(Settings)))
