"""Messages that never end, from a hundred connections at once: the node's memory is bounded, the others' calls go on.

libzmq keeps the parts of an unfinished message against no limit; the guard before the socket cuts their sender off.
"""

from __future__ import annotations

import time

import pytest
import torch

from tests.faults.endless import Endless
from tests.faults.gate import until
from tests.faults.process_node import ProcessSwarm, forget_the_peak, peak_bytes
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import FROZEN, layer

NUM_CONNECTIONS = 100
SECONDS = 60.0 if FULL else 5.0
MIB = 1024 * 1024
# What the guard lets libzmq hold for all callers as it arrives, and what else a node may take meanwhile.
HELD_BYTES, BESIDES_BYTES = 512 * MIB, 256 * MIB
SLOWEST_CALL_S = 2.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture(scope="module")
def node(processes) -> ProcessSwarm:
    swarm: ProcessSwarm = processes(layer((1,), architecture="nop", optimizer=FROZEN, deadline_s=20.0))
    return swarm


def test_messages_without_end_from_a_hundred_connections_cannot_fill_the_node(node, figure):
    address, process = node.address(), node.process()
    x = torch.randn(4, node.spec.hidden_size, dtype=torch.float64)
    took: list[float] = []
    with node.connect() as swarm:
        expert = swarm.expert("ffn0.0")
        torch.testing.assert_close(expert(x), x)
        descriptors = process.num_fds()
        before = forget_the_peak(process)
        with Endless(address, MIB, NUM_CONNECTIONS) as attack:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or attack.sent_bytes < HELD_BYTES + BESIDES_BYTES:
                started = time.monotonic()
                torch.testing.assert_close(expert(x), x)
                took.append(time.monotonic() - started)
            sent_bytes, cut_off = attack.sent_bytes, attack.cut_off

        grown = peak_bytes(process) - before
        ms = sorted(round(seconds * 1e3, 1) for seconds in took)
        figure("sent without an end, MB", sent_bytes / 1e6)
        figure("connections cut off", cut_off)
        figure("memory grown at most, MB", grown / 1e6)
        figure("calls meanwhile", len(took))
        figure("ms of a call, median and slowest", [ms[len(ms) // 2], ms[-1]])
        assert swarm.stats().failures == 0
        assert max(took) < SLOWEST_CALL_S
        assert cut_off > 0
        assert grown < HELD_BYTES + BESIDES_BYTES
        until(lambda: process.num_fds() <= descriptors, "the attackers' descriptors are closed")
        torch.testing.assert_close(expert(x), x)
