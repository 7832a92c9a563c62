"""One training of the language model: with mixtures over a real swarm, or dense, on as many batches in flight."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

import learning_at_home as lah
from experiments.byte_transformer import ByteTransformer, bits_per_byte, dense_block, sample, windows
from experiments.churn import count_backwards
from experiments.churning_nodes import ChurningNodes
from experiments.dashboard import Curve, Dashboard
from experiments.text_bytes import Text, standard_library, wikitext
from learning_at_home.client.pipeline import Pipeline
from learning_at_home.client.swarm import Swarm
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts.architectures import count_parameters, flop_per_row, weight_bytes
from node_agent.testing import LocalSwarm

WAIT_S = 60.0
TITLE = "A language model"
CLIP_NORM = 1.0  # of the local parameters' gradient, as the project's of each expert's
BALANCE = 0.01  # of the gate's balance loss, as docs/layer.md advises
UNSEEN_ROWS = 64  # sequences to measure on, evenly over the unseen text
PROMPT, TEMPERATURE = b"def ", 0.7
FLOAT_BYTES = 4

DMOE, COMPUTE, PARAMETERS = "dmoe", "dense-compute", "dense-parameters"
MODELS = (DMOE, COMPUTE, PARAMETERS)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all trainings share."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    sequences: int = 8  # per batch
    grid: tuple[int, ...] = (4, 4)  # of each layer's experts
    architecture: str = "mlp"
    k_best: int = 4
    batches: int = 800
    every: int = 80  # batches between two measurements
    learning_rate: float = 2e-3
    expert_learning_rate: float = 2e-3
    warmup: int = 20  # batches, and of each expert updates
    nodes: int = 8
    in_process: bool = False
    deadline_s: float = 20.0
    grace_s: float = 1.0  # where all share a few cores, answers to many batches in flight are late and not lost
    tolerate: int = 8  # failed batches in a row
    sample_bytes: int = 160

    def layer(self, number: int) -> LayerSpec:
        optimizer = OptimizerSpec(learning_rate=self.expert_learning_rate, warmup_updates=self.warmup)
        return LayerSpec(
            prefix=f"ffn{number}",
            grid=self.grid,
            architecture=self.architecture,
            hidden_size=self.width,
            optimizer=optimizer,
            deadline_s=self.deadline_s,
            grace_s=self.grace_s,
        )

    @property
    def project(self) -> ProjectRecord:
        return ProjectRecord(
            id="language-model", title=TITLE, layers=tuple(map(self.layer, range(self.layers)))
        ).check()

    def inner_width(self, model: str) -> int:
        """Of the dense block with as many products per byte as `k_best` experts, or as many weights as all of them."""
        layer = self.layer(0)
        experts = self.k_best if model == COMPUTE else layer.cells.num_cells
        return experts * flop_per_row(layer) // (4 * self.width)  # 2 per product, and two products of width x inner


class Point(msgspec.Struct, frozen=True):
    """A measurement; `seconds` count from the first batch and include the measurements."""

    batches: int
    seconds: float
    bits: float  # per unseen byte


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """What a swarm lost of a training."""

    kills: int = 0
    joined: int = 0  # nodes that served in the place of one that was killed, before the end
    updates_lost: int = 0  # that experts had made whose hosts were killed
    updates: int = 0  # of all experts, that answers told of; a lost answer's is not among them
    failed_calls: int = 0
    calls: int = 0
    zero_gradient_rows: int = 0
    lost_contributions: int = 0
    failed_batches: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One training to its end."""

    model: str
    in_flight: int
    killed_per_minute: float
    seed: int
    learning_rate: float  # of the local parameters
    expert_learning_rate: float
    points: list[Point]
    local_parameters: int
    expert_parameters: int
    staleness: float  # mean updates of the local parameters between a batch's forward and its own update
    lost: Lost
    text: str  # what it writes

    @property
    def name(self) -> str:
        return name_of(self.model, self.in_flight, self.killed_per_minute)


def name_of(model: str, in_flight: int, killed_per_minute: float) -> str:
    """Of a run, in tables, plots and on the dashboard."""
    churn = f", {killed_per_minute:.0%} killed/min" if killed_per_minute else ""
    return f"{model}, {in_flight} in flight{churn}"


def train(
    model: str,
    settings: Settings,
    text: Text,
    dashboard: Dashboard,
    *,
    in_flight: int,
    killed_per_minute: float,
    seed: int,
) -> Run:
    """One run, on nodes of its own when it needs any. Raises what training raises."""
    torch.manual_seed(seed)
    name = f"{name_of(model, in_flight, killed_per_minute)}, seed {seed}"
    with contextlib.ExitStack() as stack:
        if model == DMOE:
            url = dashboard.serve(settings.project)
            nodes = stack.enter_context(
                LocalSwarm(settings.project, settings.nodes, in_process=settings.in_process, coordinator=url)
            )
            swarm = stack.enter_context(nodes.connect(name))
            curve = stack.enter_context(Curve(swarm.report))
            swarm.wait_until_alive(timeout_s=WAIT_S)
            updates = count_backwards(swarm)
            network = build(model, settings, swarm)
            with ChurningNodes(nodes, killed_per_minute, seed=seed) as churn:
                points, staleness, failed = _learn(network, settings, text, in_flight, seed, curve)
                lost = _lost(swarm, churn, updates, failed)
        else:
            curve = stack.enter_context(dashboard.curve(settings.project, name))
            network, lost = build(model, settings, None), Lost()
            points, staleness, _ = _learn(network, settings, text, in_flight, seed, curve)
        written = sample(network, PROMPT, settings.sample_bytes, temperature=TEMPERATURE, seed=seed)
    return Run(
        model=model,
        in_flight=in_flight,
        killed_per_minute=killed_per_minute,
        seed=seed,
        learning_rate=settings.learning_rate,
        expert_learning_rate=settings.expert_learning_rate,
        points=points,
        local_parameters=count_parameters(network),
        expert_parameters=expert_parameters(settings) if model == DMOE else 0,
        staleness=staleness,
        lost=lost,
        text=written,
    )


def build(model: str, settings: Settings, swarm: Swarm | None) -> ByteTransformer:
    """The network; its feed-forward layers are mixtures over the swarm when there is one."""

    def feed_forward(number: int) -> torch.nn.Module:
        if swarm is not None:
            return lah.DMoE(swarm, f"ffn{number}", settings.k_best, in_features=settings.width)
        return dense_block(settings.width, settings.inner_width(model))

    return ByteTransformer(
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        context=settings.context,
        feed_forward=feed_forward,
    )


def expert_parameters(settings: Settings) -> int:
    """Of all layers' experts together."""
    return sum(layer.cells.num_cells * weight_bytes(layer) // FLOAT_BYTES for layer in settings.project.layers)


def loss_of(model: torch.nn.Module, rows_RT: Tensor) -> Tensor:
    """What is learned by: the next bytes, and a little of the gates' balance."""
    assert isinstance(model, ByteTransformer), "the pipeline gives a copy of what it was given"
    loss = model.loss(rows_RT)
    for layer in model.modules():
        if isinstance(layer, lah.DMoE):
            loss = loss + BALANCE * layer.balance_loss()
    return loss


def batches_of(text: Tensor, settings: Settings, seed: int) -> Iterator[Tensor]:
    """The rows [sequences, context + 1] of every batch: the same for the same seed, whatever the model."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(settings.batches):
        starts = torch.randint(len(text) - settings.context, (settings.sequences,), generator=random)
        yield windows(text, starts, settings.context)


def _learn(
    network: ByteTransformer, settings: Settings, text: Text, in_flight: int, seed: int, curve: Curve
) -> tuple[list[Point], float, int]:
    """The points, the mean staleness, and how many batches failed."""
    starts = torch.linspace(0, len(text.unseen) - settings.context - 1, UNSEEN_ROWS).long()
    unseen = windows(text.unseen, starts, settings.context)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / settings.warmup))
    points: list[Point] = []
    staleness = failed = 0
    began = time.monotonic()
    batches = batches_of(text.train, settings, seed)
    with Pipeline(
        batches,
        network,
        loss_of,
        optimizer,
        in_flight=in_flight,
        clip_norm=CLIP_NORM,
        tolerate=settings.tolerate,
        progress=False,
    ) as pipeline:
        for step in pipeline:
            staleness += step.staleness
            failed += step.error is not None
            if step.error is None:
                warmup.step()
            done = step.number + 1
            curve(done, loss=step.loss)
            if done % settings.every == 0 or done == settings.batches:
                bits = bits_per_byte(network, unseen, settings.sequences)
                points.append(Point(done, time.monotonic() - began, bits))
                curve(done, bits_per_unseen_byte=bits)
    return points, staleness / settings.batches, failed


def _lost(swarm: Swarm, churn: ChurningNodes, updates: Sequence[int], failed_batches: int) -> Lost:
    """What is known at the end of the training, before the nodes end."""
    stats = swarm.stats()
    return Lost(
        kills=len(churn.kills),
        joined=sum(kill.joined_after_s is not None for kill in churn.kills),
        updates_lost=churn.updates_lost,
        updates=updates[0],
        failed_calls=stats.failures,
        calls=stats.calls,
        zero_gradient_rows=stats.zero_gradient_rows,
        lost_contributions=stats.lost_contributions,
        failed_batches=failed_batches,
    )


def text_of(folder: Path | None) -> Text:
    """WikiText of a folder, or the standard library."""
    return standard_library() if folder is None else wikitext(folder)
