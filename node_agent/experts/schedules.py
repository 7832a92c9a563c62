"""The learning rate of an expert's next update: a pure function of how many it has made.

The same numbers as torch's LinearLR, then CosineAnnealingLR or LinearLR, joined by SequentialLR; unlike the cosine of
torch ours stays at its lowest point.
"""

from __future__ import annotations

import math

from learning_at_home.project import OptimizerSpec


def learning_rate_at(spec: OptimizerSpec, updates: int) -> float:
    """For the update that follows so many.

    The first of W warm-up updates has a W-th of the rate, the last all of it. The decay begins with the update after
    them, which still has the whole rate, and has reached the final one after `decay_updates` more.
    """
    if updates < spec.warmup_updates:
        return spec.learning_rate * (updates + 1) / spec.warmup_updates
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = min(1.0, (updates - spec.warmup_updates) / spec.decay_updates)
    left = 1.0 - progress if spec.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.final_learning_rate + (spec.learning_rate - spec.final_learning_rate) * left
