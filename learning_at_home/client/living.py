"""The living experts of one layer, ready for the gate: the directory's view with its cells indexed once per change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from learning_at_home.client.fanout import CallContext
from learning_at_home.client.selection import CellIndex
from learning_at_home.directory.beam_search import LineScores
from learning_at_home.directory.directory import LayerView
from learning_at_home.project import LayerSpec

POLL_S = 0.02  # a look at the directory takes microseconds, and only a caller who lacks experts waits


EXPLORED_EVERY_S = 1.0  # for rows that come sooner those experts must do that are known
EXPLORED_ROWS = 256  # of a batch, evenly spread
EXPLORED_WIDTH = 2  # beams per expert that is to be chosen: some of the best cells are dead


@dataclass(slots=True)
class LivingExperts:
    """Who of one layer can be asked now. Any thread.

    `explore(prefix, scores, width, timeout_s)` has the directory look for the best experts of some rows.
    """

    context: CallContext
    layer: LayerSpec
    explore: Callable[[str, LineScores, int, float], None] | None = None
    _explored_s: float = field(default=float("-inf"), repr=False)
    _indexed: tuple[int, CellIndex] | None = field(default=None, repr=False)

    def now(self) -> tuple[LayerView, CellIndex]:
        """The view and the index of its living cells, in flat order."""
        view = self.context.directory.layer(self.layer.prefix)
        indexed = self._indexed
        if indexed is None or indexed[0] != view.version:
            living = [cell for cell, holder in enumerate(view.holders) if holder is not None]
            indexed = self._indexed = (view.version, CellIndex.of(self.layer.grid, living))
        return view, indexed[1]

    def look_for(self, lines_RL: Tensor, k: int, deadline: float) -> None:
        """Have the best experts for these rows known, where the layer is too large for the directory to hold it all."""
        now = self.context.clock.monotonic_s()
        if self.explore is None or self.context.directory.layer(self.layer.prefix).is_whole:
            return
        if now < self._explored_s + EXPLORED_EVERY_S or now >= deadline:
            return
        self._explored_s = now
        some_RL = lines_RL[:: -(-len(lines_RL) // EXPLORED_ROWS)] if len(lines_RL) else lines_RL
        self.explore(self.layer.prefix, some_RL.tolist(), EXPLORED_WIDTH * k, deadline - now)

    def at_least(self, num_experts: int, deadline: float) -> tuple[LayerView, CellIndex]:
        """The view as soon as so many experts live; at the deadline (monotonic) whatever there is then."""
        while True:
            view, index = self.now()
            left_s = deadline - self.context.clock.monotonic_s()
            if len(index) >= num_experts or left_s <= 0:
                return view, index
            time.sleep(min(POLL_S, left_s))
