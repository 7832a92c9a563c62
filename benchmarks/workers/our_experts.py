"""Remote experts of ours: a trainer, and its nodes in processes of their own. Run by benchmarks.sides."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from benchmarks.local_expert import LocalExpert, assert_close
from benchmarks.projects import PREFIX, project_of
from benchmarks.worker import (
    Work,
    calls_per_second_in_flight,
    calls_per_second_of_threads,
    seconds_per_call,
    serve,
    settings_of,
)
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.swarm import Swarm
from learning_at_home.expert_uid import ExpertUid
from node_agent.testing import LocalSwarm
from node_agent.testing.nodes import ProcessNode

ALIVE_TIMEOUT_S = 90.0  # announcements have run out when a side was stopped for long


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    seed: int
    num_experts: int = 1
    plain: bool = False


class OurExperts:
    """One node with some experts, and the trainer that calls them."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._random = random.Random(settings.seed)
        project = project_of(settings.architecture, settings.hidden_size, (settings.num_experts,))
        with contextlib.ExitStack() as opened:
            pattern = [[f"{PREFIX}.[0:{settings.num_experts}]"]]
            self._nodes = opened.enter_context(LocalSwarm(project, 1, experts=pattern, unencrypted=settings.plain))
            self._swarm = opened.enter_context(
                Swarm.connect(bootstrap=self._nodes.bootstrap, project=project, unencrypted=settings.plain)
            )
            self.ready()
            self._opened = opened.pop_all()
        self._project = project
        self._experts = [self._swarm.expert(f"{PREFIX}.{number}") for number in range(settings.num_experts)]

    def check(self) -> None:
        """The first expert's output, and the gradient of its input, before it has stepped."""
        expert, local = self._experts[0], LocalExpert(self._project, ExpertUid(PREFIX, (0,)))
        rows, gradient = self._rows(64), self._rows(64)
        answer = expert(rows.requires_grad_())
        assert_close("the output", answer.detach(), local.forward(rows))
        answer.backward(gradient)
        assert rows.grad is not None
        assert_close("the gradient", rows.grad, local.gradients(rows, gradient)[0])

    def ready(self) -> None:
        self._swarm.wait_until_alive(timeout_s=ALIVE_TIMEOUT_S)

    def measure(self, work: Work) -> float:
        rows = self._rows(work.rows)
        if work.name == "forward":
            return seconds_per_call(lambda: self._any_expert()(rows), work)
        if work.name == "forward-backward":
            gradient = self._rows(work.rows)
            rows.requires_grad_()
            return seconds_per_call(lambda: self._any_expert()(rows).backward(gradient), work)
        if work.name == "threads":
            return calls_per_second_of_threads(lambda: self._any_expert()(rows), work)
        if work.name == "in-flight":
            return asyncio.run(calls_per_second_in_flight(lambda: self._any_expert().acall(rows), work))
        if work.name == "memory":
            return self._bytes_after_steps(rows)
        raise ValueError(f"no such work: {work.name}")

    def close(self) -> None:
        self._opened.close()

    def _bytes_after_steps(self, rows: Tensor) -> float:
        """Of the node, once every expert has its optimizer's state: its own share of the memory that it uses (PSS)."""
        for expert in self._experts:
            expert(rows).backward(rows)
        (node,) = self._nodes.nodes
        assert isinstance(node, ProcessNode)
        return float(psutil.Process(node.pid).memory_full_info().pss)

    def _any_expert(self) -> RemoteExpert:
        return self._experts[0] if len(self._experts) == 1 else self._random.choice(self._experts)

    def _rows(self, count: int) -> Tensor:
        return torch.randn(count, self._settings.hidden_size)


if __name__ == "__main__":
    serve(lambda: OurExperts(settings_of(Settings)))
