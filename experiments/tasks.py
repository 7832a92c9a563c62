"""What experiments train: rows, labels, and a model around one DMoE layer. Real data without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.text_bytes import NUM_BYTES, standard_library

# R rows, T bytes of context

HIDDEN_SIZE = 64
NUM_TRAIN_ROWS, NUM_TEST_ROWS = 30_000, 1_000
CONTEXT_BYTES, EMBEDDING_SIZE = 16, 16
TEXT_BYTES = 2_000_000  # of the standard library's modules, by name


@dataclass(frozen=True, slots=True)
class Task:
    """Rows [R, ...] and labels int64 [R]; `build` puts a layer of hidden size HIDDEN_SIZE between the ends."""

    train_rows: Tensor
    train_labels: Tensor
    test_rows: Tensor
    test_labels: Tensor
    build: Callable[[nn.Module], nn.Module]


def digits(seed: int) -> Task:
    """The demo's distorted digits."""
    from learning_at_home.demo.digits import NUM_CLASSES, NUM_FEATURES, make_digits_task  # here: needs scikit-learn

    made = make_digits_task(seed, NUM_TRAIN_ROWS, NUM_TEST_ROWS)

    def build(middle: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(NUM_FEATURES, HIDDEN_SIZE), middle, nn.Linear(HIDDEN_SIZE, NUM_CLASSES))

    return Task(made.train_rows, made.train_labels, made.test_rows, made.test_labels, build)


def text(seed: int) -> Task:
    """The next byte of Python's own standard library, by the CONTEXT_BYTES before it."""
    read = standard_library(TEXT_BYTES)
    random = torch.Generator().manual_seed(seed)

    def rows(part: Tensor, number: int) -> tuple[Tensor, Tensor]:
        starts_R = torch.randint(len(part) - CONTEXT_BYTES, (number,), generator=random)
        windows_RT = part[starts_R[:, None] + torch.arange(CONTEXT_BYTES + 1)]
        return windows_RT[:, :-1], windows_RT[:, -1]

    def build(middle: nn.Module) -> nn.Module:
        return nn.Sequential(
            nn.Embedding(NUM_BYTES, EMBEDDING_SIZE),
            nn.Flatten(),
            nn.Linear(CONTEXT_BYTES * EMBEDDING_SIZE, HIDDEN_SIZE),
            middle,
            nn.Linear(HIDDEN_SIZE, NUM_BYTES),
        )

    return Task(*rows(read.train, 10 * NUM_TRAIN_ROWS), *rows(read.unseen, NUM_TEST_ROWS), build)


TASKS: dict[str, Callable[[int], Task]] = {"digits": digits, "text": text}
