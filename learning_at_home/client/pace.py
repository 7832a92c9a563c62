"""How soon each host of a layer is expected to answer, by the calls of this process and the hints that answers carry.

What choices may take into account; formulas: docs/layer.md. Any thread; reads counters and the clock.
"""

# N living cells of a layer

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learning_at_home.client.fanout import CallContext
from learning_at_home.client.selection import CellIndex
from learning_at_home.client.stats import Pace
from learning_at_home.directory.directory import LayerView
from learning_at_home.peer_address import PeerAddress

FORGET_HALF_S = 30.0  # a host that is avoided for its slowness is not measured, and must have another chance


@dataclass(frozen=True, slots=True)
class Paces:
    """The hosts of the cells of an index, which must be of the view that is given with it."""

    context: CallContext

    def expected_s(self, view: LayerView, index: CellIndex) -> Tensor:
        """Seconds until each cell's host would answer: float64 [N]. Unknown hosts count as the layer's median.

        The mean of its answers' seconds, or the wait that its last answer told where that is more. The mean fades into
        the layer's median, by half in FORGET_HALF_S without an answer.
        """
        now = self.context.clock.monotonic_s()

        def expected(pace: Pace, median_s: float) -> float:
            faded_s: float = median_s + (pace.mean_s - median_s) * 0.5 ** ((now - pace.told_s) / FORGET_HALF_S)
            return max(faded_s, pace.load_now_s(now))

        return self._of_hosts(view, index, expected, lambda median_s: median_s)

    def capacity(self, view: LayerView, index: CellIndex, num_rows: float) -> Tensor:
        """`num_rows` divided among the cells by their hosts' speed, each share rounded up: int64 [N].

        A host's speed is m / (m + load): m the layer's median of mean answer times, load what it told that new work
        waits.
        """
        now = self.context.clock.monotonic_s()

        def speed(pace: Pace, median_s: float) -> float:
            return median_s / (median_s + pace.load_now_s(now)) if median_s > 0 else 1.0

        speed_N = self._of_hosts(view, index, speed, lambda _: 1.0)
        return (num_rows * speed_N / speed_N.sum()).ceil().to(torch.int64)

    def _of_hosts(
        self,
        view: LayerView,
        index: CellIndex,
        known: Callable[[Pace, float], float],
        unknown: Callable[[float], float],
    ) -> Tensor:
        """One figure per cell, from its host's pace and the median of the means of all these hosts."""
        holders = [view.holders[cell] for cell in index.cells_N.tolist()]
        paces = {holder: self.context.stats.pace(holder.public_key) for holder in set(holders) if holder is not None}
        means = [pace.mean_s for pace in paces.values() if pace is not None]
        median_s = statistics.median(means) if means else 0.0
        figures: dict[PeerAddress | None, float] = {
            holder: unknown(median_s) if pace is None else known(pace, median_s) for holder, pace in paces.items()
        }
        return torch.tensor([figures[holder] for holder in holders], dtype=torch.float64)
