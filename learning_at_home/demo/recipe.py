"""The numbers of the demo: what is trained, how, and which node hosts what. Without torch: the supervisor reads it too.

Measured with the same mixture in one process, 3 seeds: 0.86 of the test rows after 150 steps, 0.88 to 0.90 after 300;
with frozen experts 0.66 and 0.70; on a swarm 0.90 and 0.70. Rows are cheap and messages are not (a step sends 16 of
them whatever its size), so 512 rows per step reach the goal in a third of the steps that 128 rows need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord

PROJECT_ID = "digits"
LAYERS = ("ffn0", "ffn1")
GRID = (4, 4)
NUM_CELLS = math.prod(GRID)
HIDDEN_SIZE = 64
GOAL_ACCURACY = 0.85


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the trainer trains. The experts' own optimizer stands in the project record."""

    steps: int = 300  # twice what the goal needs; more would only be a longer wait
    rows_per_step: int = 512
    k_best: int = 4
    learning_rate: float = 4e-3  # of gates, first and last layer; falls along a half cosine to zero
    label_smoothing: float = 0.1  # worth 0.01 of accuracy here
    clip_norm: float = 1.0
    evaluate_every_steps: int = 50
    budget_s: float = 230.0  # of training: with starts and the last evaluation the whole stays under five minutes
    seed: int = 0


def learning_rate_factor(step: int, elapsed_s: float, recipe: Recipe) -> float:
    """From 1 to 0 along a half cosine, by steps or time, whichever is further: a slow machine anneals in time too."""
    progress = max(step / recipe.steps, elapsed_s / recipe.budget_s)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def project_record(*, frozen_experts: bool) -> ProjectRecord:
    """What the coordinator serves: two layers of the paper's `ffn` experts."""
    optimizer = OptimizerSpec(name="frozen") if frozen_experts else OptimizerSpec(name="adam", learning_rate=2e-3)
    title = "Digits, with frozen experts" if frozen_experts else "Digits"
    layers = tuple(
        LayerSpec(prefix=prefix, grid=GRID, architecture="ffn", hidden_size=HIDDEN_SIZE, optimizer=optimizer)
        for prefix in LAYERS
    )
    description = "Read digits that are turned, scaled and shifted on a 16x16 canvas, with two layers of 16 experts."
    return ProjectRecord(id=PROJECT_ID, title=title, description=description, layers=layers).check()


def project_toml(record: ProjectRecord) -> str:
    """The record as the TOML file that a project owner would write."""
    lines = [f'id = "{record.id}"', f'title = "{record.title}"', f'description = "{record.description}"']
    for layer in record.layers:
        lines += [
            "",
            "[[layers]]",
            f'prefix = "{layer.prefix}"',
            f"grid = {list(layer.grid)}",
            f'architecture = "{layer.architecture}"',
            f"hidden_size = {layer.hidden_size}",
            f'optimizer = {{ name = "{layer.optimizer.name}", learning_rate = {layer.optimizer.learning_rate} }}',
        ]
    return "\n".join(lines) + "\n"


def share_of_node(node: int, num_nodes: int) -> list[str]:
    """Patterns of the cells that node number `node` hosts: of every layer the same contiguous share.

    `['ffn0.[0:1].[0:4]', 'ffn1.[0:1].[0:4]']` for the first of four. Shares differ by one cell at most.
    """
    first, end = node * NUM_CELLS // num_nodes, (node + 1) * NUM_CELLS // num_nodes
    columns = GRID[1]
    patterns = []
    for prefix in LAYERS:
        cell = first
        while cell < end:
            row, column = divmod(cell, columns)
            if column == 0 and end - cell >= columns:  # as many whole lines as there are
                rows = (end - cell) // columns
                patterns.append(f"{prefix}.[{row}:{row + rows}].[0:{columns}]")
                cell += rows * columns
            else:
                length = min(end - cell, columns - column)
                patterns.append(f"{prefix}.[{row}:{row + 1}].[{column}:{column + length}]")
                cell += length
    return patterns
