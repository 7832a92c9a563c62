"""The batches that a node's runtime is given, and that its reference counts with: a number of rows for every expert."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

FEWEST_ROWS, MOST_ROWS = 16, 256


@dataclass(frozen=True, slots=True)
class Settings:
    """Of both workers."""

    architecture: str
    hidden_size: int
    num_experts: int
    seed: int
    device: str
    tf32: bool


def rows_of_experts(settings: Settings) -> list[int]:
    """The same on both sides."""
    numbers = random.Random(settings.seed)
    return [numbers.randint(FEWEST_ROWS, MOST_ROWS) for _ in range(settings.num_experts)]


def prepare_torch(settings: Settings) -> None:
    """Threads, seed and TF32."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
