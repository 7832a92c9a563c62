"""The same expert in this process, with a host's work repeated. Run by benchmarks.sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.local_expert import LocalExpert
from benchmarks.projects import PREFIX, project_of
from benchmarks.worker import Work, seconds_per_call, serve, settings_of
from learning_at_home.expert_uid import ExpertUid


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    seed: int


class InProcess:
    """One expert, forward and backward."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._hidden_size = settings.hidden_size
        project = project_of(settings.architecture, settings.hidden_size, (1,))
        self._expert = LocalExpert(project, ExpertUid(PREFIX, (0,)))

    def check(self) -> None:
        """Plain torch it is."""

    def ready(self) -> None:
        """It waits for nobody."""

    def measure(self, work: Work) -> float:
        rows, gradient = (torch.randn(work.rows, self._hidden_size) for _ in range(2))

        def step() -> None:
            self._expert.forward(rows)
            self._expert.backward(rows, gradient)

        return seconds_per_call(step, work)

    def close(self) -> None:
        """It holds nothing."""


if __name__ == "__main__":
    serve(lambda: InProcess(settings_of(Settings)))
