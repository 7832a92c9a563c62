"""One training of `experiments.convergence --real`: node processes, sockets, and delays that really pass.

Each node stands behind a line whose delay is exponential, half of the mean each way; a share of the calls is lost on
its way, silently, which costs the layer's grace time. All trainers are one process's pipeline: as many batches in
flight as there would be trainers, each with the parameters that there were at its start. Only the protocol that treats
experts and dense blocks alike: the other one is no network's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import learning_at_home as lah
from experiments.asynchronous_trainers import ROWS_PER_EVALUATION_CALL, Rows
from experiments.dashboard import Curve, Dashboard
from experiments.virtual_training import Condition, Run, Sizes, num_classes, project_of, shares_of
from learning_at_home.errors import ConfigError
from learning_at_home.testing import Wan, lost_calls
from node_agent.testing import LocalSwarm

MIN_GRACE_S = 0.5
GRACE_MEANS = 5.0  # of the delay: one answer in 150 is left behind though it is on its way
WAIT_S = 60.0

Batch = tuple[Tensor, Tensor]


def run_for_real(
    condition: Condition, sizes: Sizes, rows: Rows, seed: int, dashboard: Dashboard, *, in_process: bool = False
) -> Run:
    """Train. Raises ConfigError for what only a virtual clock can do."""
    if condition.protocol != "alike":
        raise ConfigError("on real nodes there is only the protocol `alike`: --protocols alike")
    if not condition.experts and not in_process:
        raise ConfigError("dense blocks are known to this process alone: --in-process, or without --experts 0")
    torch.manual_seed(seed)
    project = project_of(condition, sizes, seed, grace_s=max(MIN_GRACE_S, GRACE_MEANS * condition.delay_s))
    wan = Wan(jitter_s=condition.delay_s / 2, jitter="exponential", seed=seed)
    shares, url = shares_of(project, sizes.nodes), dashboard.serve(project)
    with (
        LocalSwarm(project, experts=shares, in_process=in_process, wan=wan, coordinator=url) as nodes,
        nodes.connect(f"{condition.name}, seed {seed}") as swarm,
        Curve(swarm.report) as curve,
    ):
        swarm.wait_until_alive(timeout_s=WAIT_S)
        k_best = min(sizes.k_best, max(1, condition.experts))
        layers = [lah.DMoE(swarm, layer.prefix, k_best) for layer in project.layers]
        ends = nn.Linear(rows.train_rows.shape[1], sizes.hidden_size), nn.Linear(sizes.hidden_size, num_classes(rows))
        model = nn.Sequential(ends[0], *layers, ends[1])
        optimizer = torch.optim.Adam(model.parameters(), lr=sizes.learning_rate)
        began = time.monotonic()
        points: list[tuple[int, float, float]] = []
        staleness: Counter[int] = Counter()
        lost_batches = 0
        with lost_calls(swarm, condition.failed_share, seed) as lost:
            batches = _batches(rows, sizes, seed)
            pipeline = swarm.pipeline(
                batches, model, _loss, optimizer, in_flight=condition.trainers, clip_norm=1.0, tolerate=sizes.batches,
                progress=False,
            )  # fmt: skip
            for step in pipeline:
                if step.error is None:
                    staleness[step.staleness] += 1
                else:
                    lost_batches += 1
                done = step.number + 1
                curve(done, loss=step.loss)
                if done % sizes.evaluate_every == 0 or done == sizes.batches:
                    lost.share = 0.0
                    points.append((done, *_evaluated(model, rows)))
                    curve(done, test_loss=points[-1][1], test_accuracy=points[-1][2])
                    lost.share = condition.failed_share
        stats, seconds = swarm.stats(), time.monotonic() - began
        return Run(
            condition=condition,
            seed=seed,
            points=points,
            accuracy=points[-1][2],
            loss=points[-1][1],
            staleness=dict(sorted(staleness.items())),
            expert_staleness={},  # what the nodes count is of the last minute or two
            expert_updates=0,
            calls=stats.calls,
            failures=stats.failures,
            failed=lost.total,
            zero_gradient_rows=stats.zero_gradient_rows,
            lost_batches=lost_batches,
            mean_delay_s=condition.delay_s,
            virtual_s=seconds,
            seconds=seconds,
        )


def _batches(rows: Rows, sizes: Sizes, seed: int) -> Iterator[Batch]:
    order = torch.Generator().manual_seed(seed)
    for _ in range(sizes.batches):
        picks = torch.randint(len(rows.train_rows), (sizes.rows_per_batch,), generator=order)
        yield rows.train_rows[picks], rows.train_labels[picks]


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def _evaluated(model: nn.Module, rows: Rows) -> tuple[float, float]:
    """Loss and accuracy on the test rows, over the same lines; what is on its way meanwhile goes on."""
    right, loss = 0, 0.0
    for first in range(0, len(rows.test_rows), ROWS_PER_EVALUATION_CALL):
        part = slice(first, first + ROWS_PER_EVALUATION_CALL)
        scores, labels = model(rows.test_rows[part]), rows.test_labels[part]
        right += int((scores.argmax(dim=1) == labels).sum())
        loss += cross_entropy(scores, labels, reduction="sum").item()
    total = len(rows.test_labels)
    return loss / total, right / total
