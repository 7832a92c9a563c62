"""Messages of very many, very small parts: they cost the node little memory and little time, with an end or without."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from tests.faults.endless import Endless
from tests.faults.process_node import ProcessSwarm, forget_the_peak, peak_bytes
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import FROZEN, layer

NUM_PARTS = 300_000  # 11 MB on the wire; honest messages have a few thousand at most
SLOWEST_CALL_S = 1.0  # on a busy machine; the figure is shown

SECONDS = 60.0 if FULL else 3.0
SMALL_PARTS_TAKE = 8  # times the bytes that arrive, at most: a part of one byte is 36 on the wire and 160 in memory
BESIDES_BYTES = 64 * 1024 * 1024

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


@pytest.fixture
def node(processes) -> ProcessSwarm:
    """One for each test: what an attack leaves in the heap would hide the next one's growth."""
    swarm: ProcessSwarm = processes(layer((1,), architecture="nop", optimizer=FROZEN, deadline_s=20.0))
    return swarm


def test_a_message_of_very_many_parts_holds_nobody_up(node, raw_caller, figure):
    address = node.address()
    mallory = raw_caller(address.public_key, address.endpoints[0]).greet()
    message = [b"\xff", *[b"x"] * NUM_PARTS]
    x = torch.randn(4, node.spec.hidden_size, dtype=torch.float64)
    took: list[float] = []
    with node.connect() as swarm:
        expert = swarm.expert("ffn0.0")
        torch.testing.assert_close(expert(x), x)
        sending = threading.Thread(target=mallory.send, args=(message,))
        sending.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:  # refused or cut off: nothing tells whether more of it comes
            started = time.monotonic()
            torch.testing.assert_close(expert(x), x)
            took.append(time.monotonic() - started)
        sending.join(20.0)
        assert not sending.is_alive()
        assert swarm.stats().failures == 0
    assert node.is_alive()
    figure("calls meanwhile", len(took))
    figure("ms of the slowest call", max(took) * 1e3)
    assert max(took) < SLOWEST_CALL_S


def test_parts_of_one_byte_without_an_end_take_little_memory(node, figure):
    """Each arrives alone: libzmq must not keep the buffer of 8 KiB that it was received in for each."""
    address, process = node.address(), node.process()
    x = torch.randn(4, node.spec.hidden_size, dtype=torch.float64)
    with node.connect() as swarm:
        expert = swarm.expert("ffn0.0")
        torch.testing.assert_close(expert(x), x)
        before = forget_the_peak(process)
        with Endless(address, 1, 100) as attack:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                torch.testing.assert_close(expert(x), x)
            sent_bytes = attack.sent_bytes

        assert swarm.stats().failures == 0
    grown = peak_bytes(process) - before
    figure("sent without an end, MB", sent_bytes / 1e6)
    figure("memory grown at most, MB", grown / 1e6)
    assert grown < BESIDES_BYTES + SMALL_PARTS_TAKE * sent_bytes
