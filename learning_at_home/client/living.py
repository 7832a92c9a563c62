"""The living experts of one layer, ready for the gate: the directory's view with its cells indexed once per change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from learning_at_home.client.breaker import WINDOW_S, Breaker, HostFigures
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.selection import CellIndex
from learning_at_home.directory.beam_search import LineScores
from learning_at_home.directory.directory import LayerView
from learning_at_home.project import LayerSpec

log = logging.getLogger(__name__)

JUDGED_EVERY_S = 1.0  # hosts, by those who call them
TOLERATED_SHARE = 0.5  # of the grace time: a host that answers within is never slow
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
    _breaker: Breaker = field(init=False, repr=False)
    _judging: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _judged_s: float = field(default=float("-inf"), repr=False)

    def __post_init__(self) -> None:
        self._breaker = Breaker(TOLERATED_SHARE * self.layer.grace_s, self.layer.k_min)

    def __deepcopy__(self, memo: dict[int, object]) -> LivingExperts:
        """Copies of a model ask the same swarm."""
        return self

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

    def judge_hosts(self) -> None:
        """Put hosts aside that are slow or fail often beside the others, once in a second at most. See breaker.py."""
        now = self.context.clock.monotonic_s()
        if now < self._judged_s + JUDGED_EVERY_S or not self._judging.acquire(blocking=False):
            return
        try:
            self._judged_s = now
            cells_aside = self.context.directory.num_put_aside(self.layer.prefix)
            for verdict in self._breaker.look(self._figures(now), now, cells_aside):
                if verdict.until_s is None:
                    log.info("layer %s: %s is as fast and sound as the others again", self.layer.prefix, verdict.name)
                    continue
                self.context.directory.put_aside(verdict.public_key, verdict.until_s)
                seconds, name = verdict.until_s - now, verdict.name
                log.info("layer %s: %s is put aside for %.0f s: %s", self.layer.prefix, name, seconds, verdict.reason)
        finally:
            self._judging.release()

    def _figures(self, now: float) -> dict[bytes, HostFigures]:
        """Of the hosts that are alive, those that were called."""
        cells: dict[bytes, int] = {}
        for holder in self.context.directory.layer(self.layer.prefix).holders:
            if holder is not None:
                cells[holder.public_key] = cells.get(holder.public_key, 0) + 1
        figures = {}
        for key, num_cells in cells.items():
            if lately := self.context.stats.lately(key, now, WINDOW_S):
                p95_s = None if lately.p95_ms is None else lately.p95_ms / 1000
                figures[key] = HostFigures(lately.name, num_cells, lately.calls, lately.failures, p95_s)
        return figures

    def at_least(self, num_experts: int, deadline: float) -> tuple[LayerView, CellIndex]:
        """The view as soon as so many experts live; at the deadline (monotonic) whatever there is then."""
        while True:
            view, index = self.now()
            left_s = deadline - self.context.clock.monotonic_s()
            if len(index) >= num_experts or left_s <= 0:
                return view, index
            time.sleep(min(POLL_S, left_s))
