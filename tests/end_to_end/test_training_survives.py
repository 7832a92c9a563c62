"""A real swarm under a real trainer: a node is killed, then the coordinator, and training goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import learning_at_home as lah
from learning_at_home.demo.digits import make_digits_task
from tests.end_to_end.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROJECT = """
id = "digits"
[[layers]]
prefix = "ffn0"
grid = [4, 4]
hidden_size = 64
optimizer = { name = "adam", learning_rate = 0.002 }
[[layers]]
prefix = "ffn1"
grid = [4, 4]
hidden_size = 64
optimizer = { name = "adam", learning_rate = 0.002 }
"""
NAMES = ("brisk-heron", "calm-otter", "bold-finch", "happy-lynx")


class Training:
    """Steps of the demo's model over the swarm; keeps its losses."""

    def __init__(self, swarm: lah.Swarm) -> None:
        torch.manual_seed(0)
        self._swarm = swarm
        self._task = make_digits_task(num_train_rows=6_000, num_test_rows=1_000)
        layers = [lah.DMoE(swarm, layer="ffn0", k_best=4), lah.DMoE(swarm, layer="ffn1", k_best=4)]
        self._model = torch.nn.Sequential(torch.nn.Linear(256, 64), *layers, torch.nn.Linear(64, 10))
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=4e-3)
        self.losses: list[float] = []

    def steps(self, count: int) -> float:
        """Mean loss of this many further steps."""
        for _ in range(count):
            rows = torch.randint(len(self._task.train_rows), (256,))
            logits = self._model(self._task.train_rows[rows])
            loss = torch.nn.functional.cross_entropy(logits, self._task.train_labels[rows])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self.losses.append(loss.item())
            self._swarm.report(len(self.losses), loss=loss)
        return sum(self.losses[-count:]) / count


def view(url: str) -> Any:
    return httpx.get(url.replace("/p/", "/api/v1/projects/") + "/view", timeout=5).json()


def healths(url: str) -> Counter[str]:
    return Counter(cell[0] for layer in view(url)["layers"] for cell in layer["cells"])


def states(url: str) -> dict[str, str]:
    return {node["name"]: node["state"] for node in view(url)["nodes"]}


def failures_of_the_living(swarm: lah.Swarm) -> int:
    """The killed node is tried again at times, for as long as its announcement lives."""
    return sum(node.failures for node in swarm.stats().nodes.values() if node.name != "brisk-heron")


def test_training_goes_on_without_a_node_and_without_the_coordinator(tmp_path: Path, free_tcp_port: int) -> None:
    project_file = tmp_path / "digits.toml"
    project_file.write_text(PROJECT)
    with Processes(tmp_path) as processes:
        url = processes.coordinator(free_tcp_port, project_file)
        for line, name in enumerate(NAMES):
            processes.node(name, url, [f"{prefix}.[{line}:{line + 1}].[0:4]" for prefix in ("ffn0", "ffn1")])
        processes.until(lambda: healths(url)["serving"] == 32, "all 32 experts are serving")

        with lah.Swarm.connect(url, run="survival") as swarm:
            swarm.wait_until_alive(timeout_s=20)
            training = Training(swarm)
            calm = training.steps(20)

            processes.kill("brisk-heron")
            without_a_node = training.steps(30)
            assert without_a_node < calm
            processes.until(
                lambda: healths(url) == {"serving": 24, "orphaned": 8}, "the dead node's cells are orphaned", 10
            )

            processes.kill("coordinator")
            without_the_coordinator = training.steps(30)
            assert without_the_coordinator < without_a_node
            failures_before = failures_of_the_living(swarm)

            processes.coordinator(free_tcp_port, project_file)
            processes.until(
                lambda: healths(url) == {"serving": 24, "orphaned": 8}, "the page is right after the restart", 20
            )
            training.steps(5)
            processes.until(lambda: any(run["live"] for run in view(url)["runs"]), "the run is shown as live", 15)
            processes.until(lambda: states(url)["brisk-heron"] == "offline", "the dead node is shown as offline", 20)
            assert failures_of_the_living(swarm) == failures_before

        for name in NAMES[1:]:
            assert processes.stop(name) == 0, processes.log(name)
        assert processes.stop("coordinator") == 0, processes.log("coordinator")
