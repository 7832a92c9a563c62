"""One training on a virtual clock: which model, behind which delays and failures, and what came of it.

Two protocols. *alike*: every block, an expert's or a dense model's, is on a node; each message to a node and its answer
take an exponential time, forward and backward, and a share of the calls fails. *paper*: that of the convergence
experiment of Ryabinin & Gusev, 2020, as their notebooks have it: forward and backward take no time, experts update at
once, and only then one exponential delay passes before the trainer's own parameters get their gradient: which of a
dense model are all.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

import learning_at_home as lah
from experiments.asynchronous_trainers import AsynchronousTrainers, Outcome, Rows, Schedule
from experiments.dashboard import UNSEEN, Curve
from experiments.virtual_swarm import Delays, VirtualSwarm
from experiments.virtual_threads import VirtualThreads
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts.architectures import FeedForward, find_architecture, register_expert
from node_agent.testing.local_swarm import divide_cells

Protocol = Literal["alike", "paper"]
MIN_DEADLINE_S = 10.0
DEADLINE_MEANS = 60.0  # of the delay: every answer is waited for, e^-60 of them come too late


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a run is about. `experts` per layer; 0: the dense model, of as many flop per row."""

    experts: int
    trainers: int
    delay_s: float
    failed_share: float
    protocol: Protocol = "alike"

    @property
    def model(self) -> str:
        return f"{self.experts} experts" if self.experts else "dense"

    @property
    def setting(self) -> str:
        return f"{self.trainers} trainers, {self.delay_s * 1e3:g} ms"

    @property
    def failing(self) -> str:
        """To be put behind something else; empty when nothing fails."""
        return f", {self.failed_share:.0%} failing" if self.failed_share else ""

    @property
    def name(self) -> str:
        """Short enough for a run's."""
        return f"{self.protocol}, {self.model}, {self.setting}{self.failing}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is the same in all runs of an experiment."""

    hidden_size: int = 64
    layers: int = 2
    k_best: int = 4
    batches: int = 400
    rows_per_batch: int = 64
    evaluate_every: int = 40
    learning_rate: float = 2e-3  # of the trainers' own parameters
    expert_rate: float = 2e-3
    optimizer: str = "adam"  # of the experts
    nodes: int = 4
    step_s: float = 0.02  # of a trainer's own work on a batch, forward and backward each
    batch_s: float = 0.002  # of a node's device for what it computes at once


@dataclass(frozen=True, slots=True)
class Run:
    """One training to its end."""

    condition: Condition
    seed: int
    points: list[tuple[int, float, float]]  # batches, loss and accuracy on test rows
    accuracy: float
    loss: float
    staleness: dict[int, int]  # of the trainers' own updates: how many were so many updates old
    expert_staleness: dict[int, int]  # of the experts' updates, as the nodes counted lately
    expert_updates: int
    calls: int
    failures: int  # that the trainers saw
    failed: int  # that nodes were told to refuse
    zero_gradient_rows: int
    lost_batches: int
    mean_delay_s: float  # as drawn
    virtual_s: float
    seconds: float


def run(condition: Condition, sizes: Sizes, rows: Rows, seed: int, curve: Curve = UNSEEN) -> Run:
    """Train. The same arguments give the same figures."""
    began = time.monotonic()
    torch.manual_seed(seed)
    threads = VirtualThreads()
    paper = condition.protocol == "paper"
    late = Delays(condition.delay_s, seed)
    schedule = Schedule(
        trainers=condition.trainers,
        batches=sizes.batches,
        rows_per_batch=sizes.rows_per_batch,
        evaluate_every=sizes.evaluate_every,
        learning_rate=sizes.learning_rate,
        step_s=0.0 if paper else sizes.step_s,
        late_s=late.draw if paper else None,
    )
    ends = nn.Linear(rows.train_rows.shape[1], sizes.hidden_size), nn.Linear(sizes.hidden_size, num_classes(rows))
    if paper and not condition.experts:
        blocks = [_local_block(sizes) for _ in range(sizes.layers)]
        model = nn.Sequential(ends[0], *blocks, ends[1])
        outcome = AsynchronousTrainers(threads, model, rows, schedule, seed, curve=curve).train()
        return _result(condition, seed, outcome, None, late, began)
    project = project_of(condition, sizes, seed)
    swarm = VirtualSwarm(
        threads,
        project,
        shares_of(project, sizes.nodes),
        delays=Delays(0.0 if paper else condition.delay_s, seed),
        failed_share=condition.failed_share,
        batch_s=0.0 if paper else sizes.batch_s,
        seed=seed,
    )
    k_best = min(sizes.k_best, max(1, condition.experts))
    with swarm.swarm:
        layers = [lah.DMoE(swarm.swarm, layer.prefix, k_best, circuit_breaker=False) for layer in project.layers]
        model = nn.Sequential(ends[0], *layers, ends[1])
        outcome = AsynchronousTrainers(threads, model, rows, schedule, seed, swarm.calm, curve).train()
        return _result(condition, seed, outcome, swarm, late if paper else swarm.delays, began)


def project_of(condition: Condition, sizes: Sizes, seed: int, grace_s: float | None = None) -> ProjectRecord:
    """Layers of experts, or of one dense block each. Initial weights follow from the id, and so from the seed.

    Without `grace_s` every answer is waited for.
    """
    architecture = "ffn" if condition.experts else dense_block(inner_width(sizes.hidden_size, sizes.k_best))
    deadline_s = max(MIN_DEADLINE_S, DEADLINE_MEANS * condition.delay_s)
    layers = tuple(
        LayerSpec(
            prefix=f"ffn{number}",
            grid=grid_of(condition.experts) if condition.experts else (1,),
            architecture=architecture,
            hidden_size=sizes.hidden_size,
            optimizer=OptimizerSpec(name=sizes.optimizer, learning_rate=sizes.expert_rate),
            deadline_s=deadline_s,
            grace_s=deadline_s if grace_s is None else grace_s,
        )
        for number in range(sizes.layers)
    )
    return ProjectRecord(id=f"virtual-{seed}", layers=layers).check()


def grid_of(experts: int) -> tuple[int, int]:
    """As square as so many cells can be."""
    side = next(side for side in range(math.isqrt(experts), 0, -1) if experts % side == 0)
    return experts // side, side


def shares_of(project: ProjectRecord, nodes: int) -> list[list[str]]:
    """Per node the uids that it hosts; a node per layer where layers have one cell."""
    if all(layer.cells.num_cells == 1 for layer in project.layers):
        return [[f"{layer.prefix}.0"] for layer in project.layers]
    return [share for share in divide_cells(project, nodes) if share]


def inner_width(hidden_size: int, k_best: int) -> int:
    """Of a block d -> w -> w -> d with the products of `k_best` experts d -> 4d -> 4d -> d."""
    wanted = k_best * (2 * hidden_size * 4 * hidden_size + (4 * hidden_size) ** 2)
    return round(math.sqrt(hidden_size**2 + wanted) - hidden_size)  # w^2 + 2 d w = wanted


@cache
def dense_block(inner: int) -> str:
    """The name of the architecture of a dense model's blocks; registered by the first call."""
    name = f"dense.{inner}"

    def build(layer: LayerSpec) -> nn.Module:
        return FeedForward(layer.hidden_size, inner)

    register_expert(name)(build)
    find_architecture(name)
    return name


def _local_block(sizes: Sizes) -> nn.Module:
    return FeedForward(sizes.hidden_size, inner_width(sizes.hidden_size, sizes.k_best))


def num_classes(rows: Rows) -> int:
    """By the training labels, which are numbered from 0."""
    return int(rows.train_labels.max()) + 1


def _result(
    condition: Condition, seed: int, outcome: Outcome, swarm: VirtualSwarm | None, delays: Delays, began: float
) -> Run:
    _, loss, accuracy = outcome.points[-1]
    stats = swarm.swarm.stats() if swarm else None
    expert_staleness: dict[int, int] = {}
    for node in swarm.nodes if swarm else []:
        for updates, count in node.staleness.items():
            expert_staleness[updates] = expert_staleness.get(updates, 0) + count
    return Run(
        condition=condition,
        seed=seed,
        points=outcome.points,
        accuracy=accuracy,
        loss=loss,
        staleness=dict(sorted(outcome.staleness.items())),
        expert_staleness=dict(sorted(expert_staleness.items())),
        expert_updates=sum(node.updates for node in swarm.nodes) if swarm else 0,
        calls=stats.calls if stats else 0,
        failures=stats.failures if stats else 0,
        failed=sum(node.failed for node in swarm.nodes) if swarm else 0,
        zero_gradient_rows=stats.zero_gradient_rows if stats else 0,
        lost_batches=outcome.lost_batches,
        mean_delay_s=delays.total_s / delays.drawn if delays.drawn else 0.0,
        virtual_s=outcome.seconds,
        seconds=time.monotonic() - began,
    )
