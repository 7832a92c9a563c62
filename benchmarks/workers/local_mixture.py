"""The same mixture in this process, on as many threads as it is told. Run by benchmarks.sides.

Torch's own threads share each product, or each thread computes an expert at a time, whichever is faster.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from benchmarks.local_mixture import LocalMixture
from benchmarks.mixture_step import Step
from benchmarks.projects import project_of
from benchmarks.worker import Work, seconds_per_call, serve, settings_of


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    grid: list[int]
    k_best: int
    num_threads: int
    seed: int


class InProcess:
    """The whole layer, forward and backward."""

    def __init__(self, settings: Settings) -> None:
        self._pool = ThreadPoolExecutor(settings.num_threads, initializer=torch.set_num_threads, initargs=(1,))
        self._num_threads = settings.num_threads
        torch.manual_seed(settings.seed)
        project = project_of(settings.architecture, settings.hidden_size, tuple(settings.grid))
        self._layer = LocalMixture(project, settings.k_best)
        self._hidden_size = settings.hidden_size

    def check(self) -> None:
        """Plain torch it is."""

    def ready(self) -> None:
        """It waits for nobody."""

    def measure(self, work: Work) -> float:
        step = Step.random(work.rows, self._hidden_size)
        torch.set_num_threads(1)
        self._layer.map_groups = self._pool.map
        by_expert = seconds_per_call(lambda: step.run(self._layer), work)
        torch.set_num_threads(self._num_threads)
        self._layer.map_groups = map
        return min(by_expert, seconds_per_call(lambda: step.run(self._layer), work))

    def close(self) -> None:
        self._pool.shutdown()


if __name__ == "__main__":
    serve(lambda: InProcess(settings_of(Settings)))
