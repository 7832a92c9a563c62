"""Whole programs around a swarm: data loaders that fork, Ctrl-C, an event loop, an end without close."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from learning_at_home.client.dmoe import DMoE
from learning_at_home.project import ProjectRecord
from node_agent.testing import LocalSwarm
from tests.faults.gate import Gate
from tests.learning_at_home.client.small_swarm import layer

PROJECT = ProjectRecord(id="test", layers=(layer((2,), dtype="float32", deadline_s=30.0),))
LIMIT_S = 40.0  # torch alone takes over a second to import, on a busy machine far longer

CONNECT = """
import sys, pathlib, torch, learning_at_home as lah
swarm = lah.Swarm.connect(bootstrap=[sys.argv[1]], project=pathlib.Path(sys.argv[2]))
swarm.wait_until_alive()
"""

WITH_DATA_LOADER = (
    CONNECT
    + """
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        try:  # in a child, which must not use its parent's connections
            swarm.expert("ffn0.0")(torch.ones(1, 6))
        except lah.UsageError:
            return torch.full((6,), float(index))

model = torch.nn.Sequential(lah.DMoE(swarm, "ffn0", 2), torch.nn.Linear(6, 1))
for epoch in range(2):
    for rows in torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context="fork"):
        model(rows).sum().backward()
stats = swarm.stats()
print(stats.calls, stats.failures)
"""
)

STUCK_IN_A_CALL = (
    CONNECT
    + """
lah.DMoE(swarm, "ffn0", 2)(torch.ones(1, 6))
"""
)


@pytest.fixture
def nodes() -> Iterator[LocalSwarm]:
    with LocalSwarm(PROJECT, num_nodes=1, in_process=True) as nodes:
        yield nodes


@pytest.fixture
def arguments(nodes, tmp_path) -> list[str]:
    """Of the programs above."""
    file = tmp_path / "project.toml"
    file.write_text(
        'id = "test"\n[[layers]]\nprefix = "ffn0"\ngrid = [2]\narchitecture = "ffn"\nhidden_size = 6\n'
        "deadline_s = 30.0\n"
    )
    return [nodes.bootstrap[0], str(file)]


@pytest.mark.slow
def test_data_loaders_that_fork_leave_the_parents_swarm_alone_and_the_program_ends_without_close(nodes, arguments):
    program = subprocess.run(
        [sys.executable, "-c", WITH_DATA_LOADER, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (program.returncode, program.stderr) == (0, "")
    assert program.stdout == "16 0\n", "two epochs of two batches, forward and backward, to two experts each"
    assert sum(nodes.expert(uid).updates for uid in ("ffn0.0", "ffn0.1")) == 8


@pytest.fixture
def interrupts_are_heeded():
    """Programs inherit what is ignored, and tests that run in a shell's background ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interrupts_are_heeded")
def test_an_interrupt_within_a_call_ends_the_program_at_once(nodes, arguments):
    gates = [Gate(nodes.expert(uid).module) for uid in ("ffn0.0", "ffn0.1")]
    program = subprocess.Popen([sys.executable, "-c", STUCK_IN_A_CALL, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert any(gate.entered.wait(LIMIT_S / 2) for gate in gates), "the call is under way"
        begin = time.monotonic()
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
        seconds = time.monotonic() - begin
    finally:
        program.kill()
        program.communicate()
        for gate in gates:
            gate.remove()

    assert program.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert seconds < 5, "far from the call's deadline"


async def test_in_a_notebooks_loop_a_step_may_be_taken_and_calls_awaited(small_swarm):
    swarm = small_swarm(layer())
    host = swarm.add_host([0, 1, 2, 3])
    dmoe, expert = DMoE(swarm.swarm, "ffn0", 2), swarm.swarm.expert("ffn0.0.1")
    x = torch.randn(3, 6, dtype=torch.float64)

    awaited = await expert.acall(x)
    torch.testing.assert_close(expert(x), awaited)
    dmoe(x).sum().backward()
    await expert.acall(x)

    assert sum(hosted.updates for hosted in host.experts.by_uid.values()) > 0
