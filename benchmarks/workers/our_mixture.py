"""A DMoE layer of ours: a trainer, and its nodes in processes of their own. Run by benchmarks.sides."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from benchmarks.local_expert import assert_close
from benchmarks.local_mixture import LocalMixture
from benchmarks.mixture_step import Step
from benchmarks.projects import PREFIX, project_of
from benchmarks.worker import Work, seconds_per_call, serve, settings_of
from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.swarm import Swarm
from node_agent.testing import LocalSwarm

ALIVE_TIMEOUT_S = 90.0  # announcements have run out when a side was stopped for long
GRACE_S = 60.0  # all answers are waited for, as the local mixture waits for all experts


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    grid: list[int]
    k_best: int
    num_nodes: int
    seed: int


class OurMixture:
    """Some nodes that share a grid, and the trainer's layer."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._project = project_of(settings.architecture, settings.hidden_size, tuple(settings.grid))
        self._k_best = settings.k_best
        with contextlib.ExitStack() as opened:
            nodes = opened.enter_context(LocalSwarm(self._project, settings.num_nodes))
            self._swarm = opened.enter_context(Swarm.connect(bootstrap=nodes.bootstrap, project=self._project))
            self.ready()
            self._opened = opened.pop_all()
        self._layer = DMoE(self._swarm, layer=PREFIX, k_best=settings.k_best, grace_s=GRACE_S)
        self._hidden_size = settings.hidden_size

    def check(self) -> None:
        """Output and all gradients, before any expert has stepped."""
        local = LocalMixture(self._project, self._k_best)
        local.gate.load_state_dict(self._layer.gate.state_dict())
        step = Step.random(64, self._hidden_size)
        ours, plain = step.run(self._layer), step.run(local)
        for name, mine, theirs in zip(("the output", "the gradient", "the gate's gradient"), ours, plain, strict=False):
            assert_close(name, mine, theirs)

    def ready(self) -> None:
        self._swarm.wait_until_alive(timeout_s=ALIVE_TIMEOUT_S)

    def measure(self, work: Work) -> float:
        step = Step.random(work.rows, self._hidden_size)
        return seconds_per_call(lambda: step.run(self._layer), work)

    def close(self) -> None:
        self._opened.close()


if __name__ == "__main__":
    serve(lambda: OurMixture(settings_of(Settings)))
