"""The prober: whatever becomes of a probe, it is over, and no other one suffers for it."""

import asyncio
from collections.abc import Sequence

import pytest

from backend.live import prober
from backend.live.eyes import Probe
from backend.live.probe_plan import PROBE_EVERY_S
from backend.live.prober import run_prober
from learning_at_home.identity import Identity
from tests.backend.kit import ALICE, BOB, NOW, FakeEyes, announced, eventually, new_swarm


class Eyes(FakeEyes):
    """Alice's probes fail by a bug of ours, or never end; all others are answered."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs
        self.asked: list[bytes] = []
        self.late: list[Probe] = []

    async def run_probes(self, probes: Sequence[Probe]) -> None:
        for probe in probes:
            self.asked.append(probe.peer.public_key)
            if probe.peer.public_key == ALICE.public_key:
                self.late.append(probe)
                if self.hangs:
                    await asyncio.Event().wait()
                raise RuntimeError("a bug of ours")
            probe.finished(True, True)


@pytest.fixture
def swarm():
    made = new_swarm()
    made.directory_seen([announced(ALICE), announced(BOB, first=4, end=8)], NOW)
    return made


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_probe_that_fails_by_our_own_fault_is_over_and_the_others_go_on(swarm, monkeypatch, caplog):
    monkeypatch.setattr(prober, "PROBES_PER_EXCHANGE", 1)
    eyes = Eyes()
    task = asyncio.create_task(run_prober(eyes, lambda: [swarm], lambda: NOW))
    alice, bob = swarm.nodes[ALICE.public_key.hex()], swarm.nodes[BOB.public_key.hex()]
    await eventually(lambda: bob.ever_answered and not alice.schedule.in_flight and eyes.late)

    assert not task.done()
    assert alice.evidence.failures == 0  # it says nothing of the node
    assert alice.schedule.next_s == NOW + PROBE_EVERY_S
    assert "a bug of ours" in caplog.text
    eyes.late[0].finished(True, True)  # a thread that outlived us
    assert not alice.ever_answered
    await stopped(task)


async def test_a_prober_that_is_stopped_leaves_no_probe_under_way(swarm):
    eyes = Eyes(hangs=True)
    task = asyncio.create_task(run_prober(eyes, lambda: [swarm], lambda: NOW))
    await eventually(lambda: eyes.late)
    await stopped(task)

    assert not any(node.schedule.in_flight for node in swarm.nodes.values())


async def test_strangers_are_probed_a_few_at_once_and_after_those_who_answered():
    swarm = new_swarm()
    strangers = [Identity(bytes([1, number]) * 16) for number in range(100)]
    swarm.directory_seen([announced(each) for each in strangers], NOW)
    swarm.directory_seen([announced(each) for each in (*strangers, BOB)], NOW)
    swarm.nodes[BOB.public_key.hex()].ever_answered = True

    targets = swarm.due_probes(NOW, lambda cells: cells[0])
    assert targets[0].node.public_key == BOB.public_key
    assert len(targets) == 65
    assert swarm.due_probes(NOW, lambda cells: cells[0]) == []


def test_a_stranger_from_afar_aims_no_probe_at_this_machine():
    swarm = new_swarm()
    swarm.own_address = ""
    swarm.directory_seen([announced(ALICE)], NOW)

    assert swarm.due_probes(NOW, lambda cells: cells[0]) == []
    assert not swarm.nodes[ALICE.public_key.hex()].schedule.in_flight
