"""Random and mutated messages through the codec: a value or a WireError, nothing else, whatever the bytes."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest
import torch
import zmq

from learning_at_home.errors import LearningAtHomeError, WireError, from_wire
from learning_at_home.identity import Identity
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import from_frames
from learning_at_home.wire.framing import decode_caller, decode_node, encode, split_frames
from learning_at_home.wire.messages import Codec, Failure, Reply, Request, TensorSpec
from tests.faults.corpus import caller_messages, node_messages
from tests.faults.mutations import Fuzzer, Parts
from tests.faults.rounds import FULL, LIMIT_S

NUM_MESSAGES = 1_000_000 if FULL else 20_000
SLOWEST_S = 1.0  # of one message, in the thread's own time: what cannot be the machine's fault
MOST_GROWTH_BYTES = 64 * 1024 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


def take_from_a_caller(parts: Parts) -> bool:
    """Whether a node would take it as a message."""
    header, *frames = parts
    message = decode_caller(header)
    if isinstance(message, Request):
        _unpack([work.tensors for work in message.work], frames, message.codec)
    assert decode_caller(encode(message)) == message
    return True


def take_from_a_node(parts: Parts) -> bool:
    """Whether a caller would take it as an answer."""
    header, *frames = parts
    message = decode_node(header)
    if isinstance(message, Reply):
        _unpack([message.tensors], frames, message.codec)
    if isinstance(message, Failure):
        error = from_wire(message.code, message.message, peer="mallory")
        assert isinstance(error, LearningAtHomeError)
        assert len(str(error)) < 3_000
    encode(message)
    return True


def _unpack(groups: list[tuple[TensorSpec, ...]], frames: list[bytes], codec: Codec) -> None:
    """Deal out the frames and make the tensors. Raises WireError."""
    dealt = split_frames(groups, [zmq.Frame(frame) for frame in frames], codec=codec)
    for specs, tensors in zip(groups, dealt, strict=True):
        for spec, of_tensor in zip(specs, tensors, strict=True):
            tensor = from_frames(spec, of_tensor, codec)
            assert tensor.shape == torch.Size(spec.shape)
            assert str(tensor.dtype) == f"torch.{spec.dtype}"
            is_finite(tensor)


@pytest.mark.parametrize(
    "take, corpus",
    [(take_from_a_caller, caller_messages), (take_from_a_node, node_messages)],
    ids=["from a caller", "from a node"],
)
def test_whatever_the_bytes_the_codec_gives_a_value_or_a_wire_error(
    take: Callable[[Parts], bool], corpus, seed, figure
):
    fuzzer = Fuzzer(corpus(Identity(bytes(32))), seed)
    process = psutil.Process()
    began = time.thread_time()
    taken, slowest_s, spent_s, rss = 0, 0.0, 0.0, 0
    for number in range(NUM_MESSAGES):
        if number == NUM_MESSAGES // 10:
            rss = process.memory_info().rss
        parts = fuzzer.message(number)
        started = time.thread_time()
        try:
            taken += take(parts)
        except WireError:
            pass
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            shown = [part[:2_000].hex() for part in parts[:8]]
            pytest.fail(f"LAH_FUZZ_SEED={seed}, message {number}: {type(error).__name__}: {error}\n{shown}")
        took_s = time.thread_time() - started
        spent_s += took_s
        slowest_s = max(slowest_s, took_s)
    figure("messages", NUM_MESSAGES)
    figure("of them valid", taken)
    figure("seconds per million", (time.thread_time() - began) / NUM_MESSAGES * 1e6)
    figure("of them the codec's", spent_s / NUM_MESSAGES * 1e6)
    figure("slowest of all, ms", slowest_s * 1e3)
    assert 0.02 * NUM_MESSAGES < taken < 0.6 * NUM_MESSAGES, "else the fuzzer proves little"
    assert slowest_s < SLOWEST_S
    assert process.memory_info().rss - rss < MOST_GROWTH_BYTES


def test_a_message_of_a_seed_is_always_the_same():
    corpus = node_messages(Identity(bytes(32)))

    assert Fuzzer(corpus, 7).message(123) == Fuzzer(corpus, 7).message(123)
    assert [Fuzzer(corpus, 7).message(n) for n in range(50)] != [Fuzzer(corpus, 8).message(n) for n in range(50)]
