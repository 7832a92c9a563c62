"""Find the best experts of a layer that is too large to be read whole: down its prefixes, one lookup per dimension.

Per row of a batch the best few prefixes that live are kept, by the sum of their lines' scores: a beam. All rows' beams
are read in one crawl, and what was read lately is not asked again. The announcements found go to the directory, which
then chooses exactly among all that it knows. The beams are pure, the search is async.
Source: Ryabinin & Gusev, 2020, section 3.2.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from learning_at_home.clock import Clock
from learning_at_home.dht.messages import MAX_WANTED
from learning_at_home.directory.layer_walk import Indices, PrefixReader
from learning_at_home.expert_uid import Grid

MAX_READ = 256  # keys of one round, those that most rows want first
REMEMBERED_S = 20.0  # what a prefix's key said: as long as an announcement goes without being renewed
MAX_REMEMBERED = 65_536  # prefixes, and cells

LineScores = Sequence[Sequence[float]]  # per row one score per grid line, all dimensions side by side


class Beams:
    """Per row the `width` best prefixes, from no indices on; `advance` makes them one index longer."""

    def __init__(self, scores: LineScores, grid: Grid, width: int) -> None:
        self._scores = scores
        self._grid = grid
        self._width = width
        self._depth = 0
        self._beams: list[list[tuple[float, Indices]]] = [[(0.0, ())] for _ in scores]

    @property
    def prefixes(self) -> list[Indices]:
        """Of all rows together, those that most rows want first."""
        return [prefix for prefix, _ in Counter(prefix for beam in self._beams for _, prefix in beam).most_common()]

    def wanted(self, prefix: Indices) -> tuple[int, ...]:
        """The indices after a prefix that its rows want most, at most MAX_WANTED."""
        counts: Counter[int] = Counter()
        for row, beam in enumerate(self._beams):
            if any(of_row == prefix for _, of_row in beam):
                counts.update(index for _, index in self._lines(row)[: self._width])
        return tuple(index for index, _ in counts.most_common(MAX_WANTED))

    def advance(self, living: Mapping[Indices, Iterable[int]]) -> None:
        """`living`: which indices live after each of the prefixes."""
        alive = {prefix: frozenset(indices) for prefix, indices in living.items()}
        for row, beam in enumerate(self._beams):
            lines = self._lines(row)
            longer: list[tuple[float, Indices]] = []
            for score, prefix in beam:
                of_prefix = alive.get(prefix, frozenset())
                best = itertools.islice((line for line in lines if line[1] in of_prefix), self._width)
                longer += ((score + line_score, (*prefix, index)) for line_score, index in best)
            longer.sort(key=lambda scored: (-scored[0], scored[1]))
            self._beams[row] = longer[: self._width]
        self._depth += 1

    def _lines(self, row: int) -> list[tuple[float, int]]:
        """This dimension's lines with their scores, the best first."""
        offset, size = sum(self._grid.shape[: self._depth]), self._grid.shape[self._depth]
        of_dimension = self._scores[row][offset : offset + size]
        return sorted(zip(of_dimension, range(size), strict=True), key=lambda line: (-line[0], line[1]))


class BeamSearch:
    """Of one layer, on one event loop. Remembers what it read."""

    def __init__(self, grid: Grid, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock
        self._living: dict[Indices, tuple[float, list[int]]] = {}  # when a prefix was read, and what lives after it
        self._cells: dict[Indices, float] = {}  # when a cell's announcements were asked for

    async def run(self, reader: PrefixReader, scores: LineScores, width: int) -> bool:
        """Read what the rows' beams of this width lead to; whether anything was to be asked."""
        beams = Beams(scores, self._grid, width)
        self._forget_old()
        asked = False
        for _ in self._grid.shape[1:]:
            prefixes = beams.prefixes[:MAX_READ]
            unread = [prefix for prefix in prefixes if prefix not in self._living]
            if unread:
                asked = True
                living, answered = await reader.read(unread, lambda prefix: ())
                if answered:
                    now = self._clock.monotonic_s()
                    self._living.update((prefix, (now, indices)) for prefix, indices in living.items())
            beams.advance({prefix: self._living[prefix][1] for prefix in prefixes if prefix in self._living})
        wanted = {prefix: self._unread(prefix, beams.wanted(prefix)) for prefix in beams.prefixes[:MAX_READ]}
        unread = [prefix for prefix, indices in wanted.items() if indices]
        if unread:
            asked = True
            _, answered = await reader.read(unread, wanted.__getitem__)
            if answered:
                now = self._clock.monotonic_s()
                self._cells.update(((*prefix, index), now) for prefix in unread for index in wanted[prefix])
        return asked

    def _unread(self, prefix: Indices, indices: Iterable[int]) -> tuple[int, ...]:
        return tuple(index for index in indices if (*prefix, index) not in self._cells)

    def _forget_old(self) -> None:
        old_s = self._clock.monotonic_s() - REMEMBERED_S
        self._living = {prefix: said for prefix, said in self._living.items() if said[0] > old_s}
        self._cells = {cell: read_s for cell, read_s in self._cells.items() if read_s > old_s}
        for remembered in (self._living, self._cells):
            for oldest in list(remembered)[:-MAX_REMEMBERED]:
                del remembered[oldest]
