"""Nodes that churn, tiny: who is killed, who joins, and what is counted; never how well it trained."""

import json
import threading

import pytest
import torch

import learning_at_home as lah
from experiments.band_plot import band_plot, bands
from experiments.churn import main
from experiments.churning_nodes import ChurningNodes
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.testing import LocalSwarm

PROJECT = ProjectRecord(id="churn", layers=(LayerSpec(prefix="ffn0", grid=(4,), hidden_size=8),))


class Kills(list):
    """Says when there are enough."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted, self.enough = wanted, threading.Event()

    def append(self, kill):
        super().append(kill)
        if len(self) >= self.wanted:
            self.enough.set()


@pytest.mark.slow
def test_nodes_are_killed_at_the_rate_and_others_join_in_their_place():
    kills = Kills(2)
    with LocalSwarm(PROJECT, num_nodes=4, in_process=True) as nodes:
        before = list(nodes.nodes)
        with (
            lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT) as swarm,
            ChurningNodes(nodes, 60.0, kills=kills) as churn,  # one every quarter of a second
        ):
            swarm.wait_until_alive()
            assert churn.interval_s == 0.25
            assert kills.enough.wait(20)
        replaced = [number for number in range(4) if nodes.nodes[number] is not before[number]]

    assert set(replaced) == {kill.node for kill in kills}
    assert kills[1].at_s - kills[0].at_s > 0.2
    assert kills[0].experts == 1


@pytest.mark.slow
def test_the_updates_that_die_with_a_node_are_counted():
    with (
        LocalSwarm(PROJECT, num_nodes=2, in_process=True) as nodes,
        lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT) as swarm,
    ):
        swarm.wait_until_alive()
        swarm.expert("ffn0.3")(torch.ones(2, 8)).sum().backward()
        with ChurningNodes(nodes, 1e-6) as churn:
            assert churn.updates_of(0) == (2, 0)
            assert churn.updates_of(1) == (2, 1)


@pytest.mark.slow
def test_a_tiny_run_writes_both_trainings_and_a_plot(tmp_path, capsys):
    file, plot = tmp_path / "found.json", tmp_path / "churn.svg"
    size = ["--steps", "4", "--every", "2", "--rows", "32", "--train-rows", "200", "--test-rows", "100"]
    churn = ["--killed", "0", "60", "--nodes", "4", "--in-process", "--pace-s", "0.3", "--seeds", "1"]

    assert main([*size, *churn, "--json", str(file), "--plot", str(plot)]) == 0

    calm, churned = json.loads(file.read_text())["runs"]
    assert (calm["kills"], calm["updates_lost"], calm["failures"]) == ([], 0, 0)
    assert calm["updates"] > 0
    assert len(churned["kills"]) >= 2
    assert churned["updates_lost"] == sum(kill["updates_lost"] for kill in churned["kills"])
    assert [x for x, _ in churned["points"]] == [2.0, 4.0]
    assert "killed per minute: accuracy" in capsys.readouterr().out
    assert "6000% killed/min" in plot.read_text()


def test_a_band_is_from_least_to_most_where_all_runs_have_a_value():
    runs = [[(1, 0.5), (2, 0.6), (3, 0.9)], [(1, 0.7), (2, 0.4)]]

    assert [(band.x, band.least, round(band.mean, 6), band.most) for band in bands(runs)] == [
        (1, 0.5, 0.6, 0.7),
        (2, 0.4, 0.5, 0.6),
    ]
    picture = band_plot("A & B", "steps", "accuracy", {"one": runs, "two": [[(1, 0.1)]]})
    assert picture.count("<polyline") == picture.count("<polygon") == 2
    assert "A &amp; B" in picture


@pytest.mark.parametrize("log_x", [False, True])
def test_a_plot_of_one_point_is_a_picture(log_x):
    assert "<circle" in band_plot("one", "x", "y", {"a": [[(3, 0.0)]]}, log_x=log_x)
