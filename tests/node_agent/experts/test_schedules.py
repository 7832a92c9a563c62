"""Learning rates are torch's schedulers', and a pure function of the number of updates."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from learning_at_home.project import OptimizerSpec
from node_agent.experts.schedules import learning_rate_at


def rates_of(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, updates: int) -> list[float]:
    rates = []
    for _ in range(updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup_updates", [0, 2, 7])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_are_those_of_torchs_schedulers(schedule, warmup_updates):
    decay_updates = 0 if schedule == "constant" else 13
    spec = OptimizerSpec(
        learning_rate=0.4,
        warmup_updates=warmup_updates,
        schedule=schedule,
        decay_updates=decay_updates,
        final_learning_rate=0.1,
    )
    spec.check("a layer")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    falling: LRScheduler
    if schedule == "cosine":
        falling = CosineAnnealingLR(optimizer, T_max=decay_updates, eta_min=0.1)
    else:
        end = 1.0 if schedule == "constant" else 0.25
        falling = LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=13)
    scheduler: LRScheduler = falling
    if warmup_updates:
        optimizer.param_groups[0]["lr"] = 0.4
        rising = LinearLR(optimizer, start_factor=1 / warmup_updates, total_iters=warmup_updates - 1)
        scheduler = SequentialLR(optimizer, [rising, falling], milestones=[warmup_updates])

    length = warmup_updates + 13 + 1
    expected = rates_of(optimizer, scheduler, length)

    assert [learning_rate_at(spec, updates) for updates in range(length)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_decay_the_rate_stays_at_the_final_one(schedule):
    spec = OptimizerSpec(learning_rate=0.4, schedule=schedule, decay_updates=5, final_learning_rate=0.1)

    assert learning_rate_at(spec, 5) == learning_rate_at(spec, 10_000) == pytest.approx(0.1)
