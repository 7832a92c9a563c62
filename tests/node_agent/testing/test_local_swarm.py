"""LocalSwarm is real nodes: they serve, die, fall silent and come back."""

import os
import time

import pytest
import torch

from learning_at_home.client.swarm import Swarm
from learning_at_home.clock import SystemClock
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.directory import Directory
from learning_at_home.errors import ConfigError, UnknownExpert, UsageError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.testing import Wan
from node_agent.experts.architectures import build_expert
from node_agent.testing import LocalSwarm
from node_agent.testing.local_swarm import divide_cells
from node_agent.testing.nodes import NodeDied, ProcessNode
from node_agent.testing.project_files import project_toml


@pytest.mark.parametrize("title", ["", 'quo"ted \\ näme'])
def test_a_project_survives_its_file(project, tmp_path, title):
    optimizer = OptimizerSpec(name="adamw", betas=(0.5, 0.6), clip_norm=2.5)
    layers = (*project.layers, LayerSpec(prefix="seq0", grid=(3,), sequence_length=7, optimizer=optimizer))
    record = ProjectRecord(id="digits", title=title, layers=layers, revision=4)
    path = tmp_path / "project.toml"
    path.write_text(project_toml(record), "utf-8")

    assert ProjectRecord.from_toml(path) == record


@pytest.mark.parametrize(
    "num_nodes,expected",
    [
        (1, [["ffn0.0.0", "ffn0.0.1", "ffn0.1.0", "ffn0.1.1", "mlp0.0", "mlp0.1"]]),
        (2, [["ffn0.0.0", "ffn0.0.1", "mlp0.0"], ["ffn0.1.0", "ffn0.1.1", "mlp0.1"]]),
        (4, [["ffn0.0.0"], ["ffn0.0.1", "mlp0.0"], ["ffn0.1.0"], ["ffn0.1.1", "mlp0.1"]]),
    ],
)
def test_cells_are_divided_among_the_nodes(project, num_nodes, expected):
    assert divide_cells(project, num_nodes) == expected


def test_more_nodes_than_cells_are_refused(project):
    with pytest.raises(UsageError, match="9 nodes need at least as many cells"):
        LocalSwarm(project, num_nodes=9)


def test_nodes_of_this_process_can_be_called_and_looked_into(project, caller):
    x = torch.randn(3, 8, dtype=torch.float64)
    with LocalSwarm(project, num_nodes=2, in_process=True) as swarm:
        answer = caller.call(swarm.address(1), "ffn0.1.1", "forward", x)
        caller.call(swarm.address(1), "ffn0.1.1", "backward", x, x)
        expert = swarm.expert("ffn0.1.1")
        with pytest.raises(UnknownExpert):
            swarm.expert("ffn0.9.9")
        with pytest.raises(UsageError, match="is no process that could be stopped"):
            swarm.stop(0)

    local = build_expert(project.layer("ffn0"), "digits", ExpertUid("ffn0", (1, 1)))
    assert torch.equal(answer, local(x))
    assert expert.updates == 1


def test_a_node_that_was_killed_comes_back_with_its_key_and_new_weights(project, caller):
    x = torch.randn(3, 8, dtype=torch.float64)
    with LocalSwarm(project, num_nodes=2, in_process=True) as swarm:
        before = swarm.address(0)
        first = caller.call(before, "ffn0.0.0", "forward", x)
        caller.call(before, "ffn0.0.0", "backward", x, x)
        swarm.kill(0)
        swarm.restart(0)

        assert swarm.address(0).public_key == before.public_key
        assert torch.equal(caller.call(swarm.address(0), "ffn0.0.0", "forward", x), first)


def test_a_node_that_replaces_a_killed_one_has_another_key_and_its_cells(project):
    with LocalSwarm(project, num_nodes=2, in_process=True) as swarm:
        before = swarm.address(0)
        swarm.kill(0)
        swarm.replace(0)
        swarm.wait_until_serving()

        assert swarm.address(0).public_key != before.public_key
        assert swarm.shares[0][0] == str(swarm.expert(swarm.shares[0][0]).uid)


def test_a_node_that_cannot_start_says_why(project):
    with pytest.raises(NodeDied) as death, LocalSwarm(project, experts=[["ffn0.7.7"]], in_process=True):
        pass

    assert isinstance(death.value.__cause__, ConfigError)


@pytest.mark.slow
@pytest.mark.timeout(150)  # three processes import torch, two at once
async def test_processes_serve_are_killed_and_come_back(project):
    with LocalSwarm(project, num_nodes=2) as swarm:
        async with DhtNode(Identity.generate(), bootstrap=swarm.bootstrap) as dht:
            directory = Directory(project, SystemClock())
            await directory.refresh(dht)
            assert directory.layer("ffn0").num_alive == 4
            assert directory.layer("mlp0").num_alive == 2
        swarm.stop(1)
        swarm.cont(1)
        swarm.kill(0)
        swarm.restart(0)
        pids = [node.pid for node in swarm.nodes if isinstance(node, ProcessNode)]

    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_process_that_ends_shows_its_last_words(project):
    with (
        pytest.raises(NodeDied, match="no layer 'ffn7'"),
        LocalSwarm(project, experts=[["ffn7.0.0"]]),
    ):
        pass


@pytest.mark.parametrize(
    "in_process", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["threads", "processes"]
)
def test_nodes_behind_lines_are_called_over_them(project, in_process):
    x = torch.randn(3, 8, dtype=torch.float64)
    with (
        LocalSwarm(project, num_nodes=1, in_process=in_process, wan=Wan(delay_s=0.04)) as nodes,
        Swarm.connect(bootstrap=nodes.bootstrap, project=project) as swarm,
    ):
        swarm.wait_until_alive()
        expert = swarm.expert("ffn0.1.1")
        before = expert(x)
        began = time.monotonic()
        assert torch.equal(expert(x), before)
        assert time.monotonic() - began >= 0.08
        assert nodes.wan.counters(0).bytes_up > 0
        if in_process:
            nodes.restart(0)
            swarm.wait_until_alive()
            expert(x)  # a restarted node is found at the end of the same line


def test_each_node_has_a_line_or_none_has(project):
    with pytest.raises(UsageError, match="3 lines for 2 nodes"):
        LocalSwarm(project, num_nodes=2, wan=[Wan()] * 3)
    with LocalSwarm(project, num_nodes=1, in_process=True) as nodes, pytest.raises(UsageError, match="directly"):
        _ = nodes.wan
