"""A caller that asks for much and reads nothing: the node's memory stays under a bound, and the others are served."""

from __future__ import annotations

import time

import pytest
import torch

from learning_at_home.tensors.frames import to_frames
from learning_at_home.wire.framing import encode
from learning_at_home.wire.messages import Codec, Request, Work
from tests.faults.process_node import ProcessSwarm, forget_the_peak, peak_bytes
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import FROZEN, layer

FEATURES, ROWS = 1_024, 4_096
ANSWER_BYTES = 4 * FEATURES * ROWS
NUM_ANSWERS = 512 if FULL else 192  # 3 GiB
# 256 MiB queued, two batches of 64 MiB, 192 MiB unsent: of these an answer holds the batch that it was computed in.
MOST_GROWTH_BYTES = 1_280 * 1024 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture
def node(processes) -> ProcessSwarm:
    """One for each test: what one leaves in the heap would hide the growth of the next."""
    spec = layer((1,), architecture="nop", hidden_size=FEATURES, dtype="float32", optimizer=FROZEN, deadline_s=20.0)
    swarm: ProcessSwarm = processes(spec)
    return swarm


def test_a_caller_that_reads_nothing_cannot_grow_the_nodes_memory(node, raw_caller, figure):
    address, process = node.address(), node.process()
    codec: Codec = "int8"  # the largest answer for the fewest bytes
    spec, sent = to_frames(torch.zeros(ROWS, FEATURES), codec)
    frames = [bytes(frame) for frame in sent]
    deaf = raw_caller(address.public_key, address.endpoints[0], receive_messages=1, receive_bytes=65_536).greet()
    x = torch.randn(3, FEATURES)
    with node.connect() as swarm:
        expert = swarm.expert("ffn0.0")
        torch.testing.assert_close(expert(x), x)
        before = forget_the_peak(process)
        started = time.monotonic()

        for call_id in range(NUM_ANSWERS):
            work = (Work(call_id, "ffn0.0", "forward", (spec,)),)
            issued_ms = round(time.time() * 1000)
            header = encode(Request("test", issued_ms, 60_000, work, codec=codec, reply_codec="none"))
            deaf.send([header, *frames])
            if call_id % 32 == 0:
                torch.testing.assert_close(expert(x), x)

        torch.testing.assert_close(expert(x), x)
        figure("asked for, MB", NUM_ANSWERS * ANSWER_BYTES / 1e6)
        figure("memory grown at most, MB", (peak_bytes(process) - before) / 1e6)
        figure("seconds", time.monotonic() - started)
        assert peak_bytes(process) - before < MOST_GROWTH_BYTES
