"""The living experts of one layer, ready for the gate: the directory's view with its cells indexed once per change."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from learning_at_home.client.fanout import CallContext
from learning_at_home.client.selection import CellIndex
from learning_at_home.directory.directory import LayerView
from learning_at_home.project import LayerSpec

POLL_S = 0.02  # a look at the directory takes microseconds, and only a caller who lacks experts waits


@dataclass(slots=True)
class LivingExperts:
    """Who of one layer can be asked now. Any thread."""

    context: CallContext
    layer: LayerSpec
    _indexed: tuple[int, CellIndex] | None = field(default=None, repr=False)

    def now(self) -> tuple[LayerView, CellIndex]:
        """The view and the index of its living cells, in flat order."""
        view = self.context.directory.layer(self.layer.prefix)
        indexed = self._indexed
        if indexed is None or indexed[0] != view.version:
            living = [cell for cell, holder in enumerate(view.holders) if holder is not None]
            indexed = self._indexed = (view.version, CellIndex.of(self.layer.grid, living))
        return view, indexed[1]

    def at_least(self, num_experts: int, deadline: float) -> tuple[LayerView, CellIndex]:
        """The view as soon as so many experts live; at the deadline (monotonic) whatever there is then."""
        while True:
            view, index = self.now()
            left_s = deadline - self.context.clock.monotonic_s()
            if len(index) >= num_experts or left_s <= 0:
                return view, index
            time.sleep(min(POLL_S, left_s))
