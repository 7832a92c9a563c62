"""How a layer's rows are spread over its experts, lately, and whether its gate has collapsed onto a few.

Pure but for the logger: takes `now` (monotonic). Memory for a few numbers per cell, whatever the number of batches.
"""

# N cells of the layer

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learning_at_home.expert_uid import ExpertUid, Grid

log = logging.getLogger(__name__)

WINDOW_BATCHES = 100  # a batch of so many ago counts 37 % of the newest one
GROWTH = 1.0 / (1.0 - 1.0 / WINDOW_BATCHES)
MAX_UNIT = 1e100  # after 23,000 batches; then all is counted in new units
MIN_BATCHES = WINDOW_BATCHES  # before them a gate has had no time to collapse, nor we to see it
COLLAPSED_SHARE = 0.1  # see `has_collapsed`
LOOK_EVERY_BATCHES = 20  # a look takes time for each living cell
WARN_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """The last batches of a layer with autograd on, the newest counting most: each before it counts 1 % less."""

    batches: int  # since the layer was made
    shares: dict[ExpertUid, float]  # of each living expert in the answers that rows got; they add up to 1
    entropy: float  # of these shares, in nats
    entropy_share: float  # of its maximum, ln(number of living experts): 1 when all get as much, 0 when one gets all
    effective_experts: float  # exp(entropy): so many, used evenly, would have the same entropy
    experts_per_row: float  # answers that a row got, in the mean
    num_unused: int  # living experts that no row got in the last 100 batches

    @property
    def has_collapsed(self) -> bool:
        """Whether hardly more experts are used than one row needs.

        Over at least 100 batches, the effective number of experts exceeds that of a single row by less than 10 % of
        what the other living ones could add.
        """
        others = len(self.shares) - self.experts_per_row
        beyond = self.effective_experts - self.experts_per_row
        return self.batches >= MIN_BATCHES and others > 0 and beyond < COLLAPSED_SHARE * others


class UsageMeter:
    """Counts a layer's batches, from any thread: those of a pipeline's copies are counted together."""

    def __init__(self, prefix: str, grid: Grid) -> None:
        self._lock = threading.Lock()
        self._prefix = prefix
        self._grid = grid
        self._answers_N: NDArray[np.float64] = np.zeros(grid.num_cells)  # in units of the newest batch's, growing
        self._last_used_N: NDArray[np.int64] = np.full(grid.num_cells, -WINDOW_BATCHES - 1)  # batch number
        self._rows = 0.0  # in the same units
        self._unit = 1.0  # instead of letting all cells fade, which would cost time for each, the newest count more
        self._batches = 0
        self._warn_at_s = -math.inf

    def count(self, cells: NDArray[np.int64]) -> None:
        """A batch: the cells whose answers its rows got, [R, S], -1 where none."""
        used = cells[cells >= 0]
        with self._lock:
            self._unit *= GROWTH
            if self._unit > MAX_UNIT:
                self._answers_N /= self._unit
                self._rows /= self._unit
                self._unit = 1.0
            np.add.at(self._answers_N, used, self._unit)
            self._rows += self._unit * int(np.count_nonzero(cells[:, 0] >= 0))
            self._last_used_N[used] = self._batches
            self._batches += 1

    def usage(self, living: Sequence[int] | NDArray[np.int64]) -> Usage:
        """What was counted of the cells that are alive now, by flat index."""
        places = np.asarray(living, np.int64)
        with self._lock:
            answers, last_used = self._answers_N[places], self._last_used_N[places]
            batches, all_answers, rows = self._batches, float(self._answers_N.sum()), self._rows
        total = float(answers.sum())
        shares = answers / total if total else answers
        used = shares[shares > 0]
        entropy = max(0.0, float(-(used * np.log(used)).sum()))
        return Usage(
            batches=batches,
            shares={
                self._grid.uid(self._prefix, cell): share
                for cell, share in zip(places.tolist(), shares.tolist(), strict=True)
            },
            entropy=entropy,
            entropy_share=entropy / math.log(len(places)) if len(places) > 1 else 1.0,
            effective_experts=math.exp(entropy),
            experts_per_row=all_answers / rows if rows else 0.0,
            num_unused=int((last_used < batches - WINDOW_BATCHES).sum()),
        )

    def __getstate__(self) -> dict[str, object]:
        """For copies, which count for themselves from then on."""
        with self._lock:
            return {name: copy.copy(value) for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}

    def is_due(self) -> bool:
        """Whether `warn` should have a look, after this batch."""
        return self._batches % LOOK_EVERY_BATCHES == 0 and self._batches >= MIN_BATCHES

    def warn(self, living: Sequence[int] | NDArray[np.int64], now: float) -> bool:
        """Say in the log that the gate has collapsed, when it has, once in WARN_EVERY_S; whether it was said."""
        if now < self._warn_at_s:
            return False
        usage = self.usage(living)
        with self._lock:
            if now < self._warn_at_s or not usage.has_collapsed:
                return False
            self._warn_at_s = now + WARN_EVERY_S
        log.warning(
            "layer %s: the gate has collapsed: its rows went to %.1f of %d living experts, effectively, where one row "
            "takes %.1f; %d got nothing in the last %d batches (entropy %.2f, %.0f %% of its maximum). Add more of "
            "layer.balance_loss() to the loss, or make the gate noisy (docs/layer.md)",
            self._prefix,
            usage.effective_experts,
            len(usage.shares),
            usage.experts_per_row,
            usage.num_unused,
            WINDOW_BATCHES,
            usage.entropy,
            100 * usage.entropy_share,
        )
        return True
