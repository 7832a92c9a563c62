"""Nodes a long way off, and two models of equal FLOPs per row on them: DMoE layers, and a chain of single experts.

Each node has a line of its own (learning_at_home.testing.Wan). A call takes `delay_s` longer: half of it each way.
A stage of the chain is one expert that is sqrt(k_best) times wider than a layer's, which has k_best times the products
and weights of one. Both are run as a user would, by `swarm.pipeline`, or forward alone by threads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.swarm import Swarm
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.testing import Wan, lost_calls
from node_agent.testing import LocalSwarm

Model = Literal["dmoe", "chain"]
ALIVE_TIMEOUT_S = 90.0  # announcements have run out when the processes were stopped for long
LEARNING_RATE = 1e-6  # of gates and experts: what is chosen stays as it was, and with it the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What is trained, and on how many nodes."""

    architecture: str = "mlp"
    hidden_size: int = 256
    sequence_length: int | None = None
    num_layers: int = 8
    grid: tuple[int, ...] = (4, 4)
    k_best: int = 4
    num_nodes: int = 4
    k_min: int = 1
    grace_s: float = 0.5
    deadline_s: float = 10.0

    @property
    def chain_hidden_size(self) -> int:
        """Raises ValueError where no width has just k_best times the products."""
        factor = math.isqrt(self.k_best)
        if factor * factor != self.k_best:
            raise ValueError(f"k_best={self.k_best}: a chain of equal FLOPs needs a square, as 1, 4 or 9")
        return factor * self.hidden_size

    def project(self) -> ProjectRecord:
        """DMoE layers `dmoe0`, `dmoe1` ... and a layer `chain`, of whose cells each is a stage."""
        layers = [self._layer(f"dmoe{number}", self.grid, self.hidden_size) for number in range(self.num_layers)]
        chain = self._layer("chain", (self.num_layers,), self.chain_hidden_size)
        return ProjectRecord(id="distance", title="Throughput under latency", layers=(*layers, chain)).check()

    def _layer(self, prefix: str, grid: tuple[int, ...], hidden_size: int) -> LayerSpec:
        return LayerSpec(
            prefix=prefix,
            grid=grid,
            architecture=self.architecture,
            hidden_size=hidden_size,
            sequence_length=self.sequence_length,
            optimizer=OptimizerSpec(name="adam", learning_rate=LEARNING_RATE),
            deadline_s=self.deadline_s,
            k_min=self.k_min,
            grace_s=self.grace_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How far the nodes are, and how much is lost on the way."""

    delay_s: float = 0.0  # per call: half of it each way
    jitter_s: float = 0.0  # standard deviation, per call
    bytes_per_s: float = math.inf  # of each node's line, each way
    lost: float = 0.0  # share of calls whose request or reply is lost
    seed: int = 0

    @property
    def line(self) -> Wan:
        """Both ways together have the call's mean and deviation."""
        return Wan(
            delay_s=self.delay_s / 2,
            jitter_s=self.jitter_s / math.sqrt(2),
            bytes_per_s=self.bytes_per_s,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is run over the way, and for how long it is counted."""

    model: Model = "dmoe"
    backward: bool = True
    rows: int = 64
    in_flight: int = 64
    compression: str = "none"
    warm_batches: int = 64  # that are not counted: the way is full then
    batches: int = 64  # that are: a multiple of `in_flight`, since batches that began together end together

    @property
    def all_batches(self) -> int:
        """Others come behind those that count: the way stays full to the last of them."""
        return self.warm_batches + self.batches + self.in_flight - 1


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was counted between the first batch that counts and the last."""

    rows_per_s: float  # answered rows: of batches that did not fail, without those that got no gradient from a layer
    batches: int
    failed_batches: int
    seconds: float
    calls: int  # sent in the whole run, before and after it as well
    lost_requests: int
    lost_replies: int
    batch_s: float  # how long one batch took, on average


class DistantTraining:
    """Starts with the context: nodes in processes of their own, their lines, a connected trainer."""

    def __init__(self, models: Models, seed: int = 0, coordinator: str | None = None) -> None:
        """`coordinator`: the address of the models' project at one, which nodes and trainer join."""
        self.models = models
        self._coordinator = coordinator
        self.project = models.project()
        self._seed = seed
        self._way = Way(seed=seed)

    def __enter__(self) -> DistantTraining:
        torch.set_num_threads(1)
        torch.manual_seed(self._seed)
        with contextlib.ExitStack() as opened:
            self.nodes = opened.enter_context(
                LocalSwarm(self.project, self.models.num_nodes, wan=self._way.line, coordinator=self._coordinator)
            )
            self.swarm = opened.enter_context(self.nodes.connect())
            self.ready()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def ready(self) -> None:
        """Until all experts can be called."""
        self.swarm.wait_until_alive(timeout_s=ALIVE_TIMEOUT_S)

    def model(self, model: Model, compression: str = "none") -> nn.Module:
        """All its layers, each added to what comes in; `chain` has one weight of its own, for the optimizer."""
        models = self.models
        if model == "chain":
            stages = [
                RemoteExpert(self.swarm, f"chain.{number}", compression=compression)
                for number in range(models.num_layers)
            ]
            return nn.Sequential(_Gain(), *map(_Residual, stages))
        layers = [
            DMoE(self.swarm, f"dmoe{number}", models.k_best, compression=compression)
            for number in range(models.num_layers)
        ]
        return nn.Sequential(*map(_Residual, layers))

    def throughput(self, load: Load, way: Way, report: Callable[..., None] | None = None) -> Throughput:
        """Run it until the way is full, count, and let what is under way come to its end.

        `report(number, rows_per_s=...)` is called after each batch.
        """
        self.nodes.wan.change(way.line)
        self.ready()  # a node may still be suspected for what an earlier run lost
        torch.manual_seed(self._seed)  # the same gates and rows in every run: equal work
        model = self.model(load.model, load.compression)
        with lost_calls(self.swarm, way.lost, seed=way.seed) as lost:
            batches = (self._batch(load) for _ in range(load.all_batches))
            run = self._train(model, load, batches) if load.backward else _forward(model, load, batches)
            counted = _count(run if report is None else _reported(run, load, report), load, self.swarm)
            return replace(counted, calls=lost.calls, lost_requests=lost.requests, lost_replies=lost.replies)

    def _train(self, model: nn.Module, load: Load, batches: Iterator[Tensor]) -> Iterator[float | None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

        def loss(copy: nn.Module, x: Tensor) -> Tensor:
            return torch.nn.functional.mse_loss(copy(x), x)

        steps = self.swarm.pipeline(
            batches,
            model,
            loss,
            optimizer,
            in_flight=load.in_flight,
            tolerate=1_000_000,
            in_order=False,
            progress=False,
        )
        with steps:
            for step in steps:
                yield None if step.error is not None else step.seconds

    def _batch(self, load: Load) -> Tensor:
        hidden_size = self.models.chain_hidden_size if load.model == "chain" else self.models.hidden_size
        sequence = () if self.models.sequence_length is None else (self.models.sequence_length,)
        return torch.randn(load.rows, *sequence, hidden_size)


class _Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x)
        return x + answer


class _Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def _forward(model: nn.Module, load: Load, batches: Iterator[Tensor]) -> Iterator[float | None]:
    """How long each batch took, None for one that failed, as they are done; `in_flight` are under way."""
    model.eval()

    def run(x: Tensor) -> float | None:
        began = time.monotonic()
        try:
            with torch.no_grad():
                model(x)
        except LearningAtHomeError:
            return None
        return time.monotonic() - began

    with ThreadPoolExecutor(load.in_flight) as threads:
        under_way = {threads.submit(run, x) for x in itertools.islice(batches, load.in_flight)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way |= {threads.submit(run, x) for x in itertools.islice(batches, len(done))}
            yield from [future.result() for future in done]


def _reported(run: Iterator[float | None], load: Load, report: Callable[..., None]) -> Iterator[float | None]:
    """The batches as they come; reported is the speed of the last ones, as many as are in flight, failed ones too."""
    ends = deque([time.monotonic()], maxlen=load.in_flight + 1)
    for number, seconds in enumerate(run, 1):
        ends.append(time.monotonic())
        report(number, rows_per_s=load.rows * (len(ends) - 1) / max(1e-9, ends[-1] - ends[0]))
        yield seconds


def _count(run: Iterator[float | None], load: Load, swarm: Swarm) -> Throughput:
    """Counts from the end of the last batch that only warms up, and lets those behind come to their end."""
    for _ in itertools.islice(run, load.warm_batches):
        pass
    began, without_gradient = time.monotonic(), swarm.stats().zero_gradient_rows
    taken = list(itertools.islice(run, load.batches))
    seconds = time.monotonic() - began
    answered = [each for each in taken if each is not None]
    rows = load.rows * len(answered) - (swarm.stats().zero_gradient_rows - without_gradient)
    for _ in run:
        pass
    mean_s = sum(answered) / len(answered) if answered else math.nan
    return Throughput(max(0, rows) / seconds, len(taken), len(taken) - len(answered), seconds, 0, 0, 0, mean_s)
