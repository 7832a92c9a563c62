"""Which experts of a stack to compute as one grouped product, when their numbers of rows differ. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# What copying one expert's weights costs, in rows computed with them: they cross the memory twice, 8 bytes per weight,
# and a row is 2 flop per weight. An H100's float32 products and memory make that 80 rows, a GeForce 4090's 330.
COPY_ROWS = 64
LAUNCH_FLOP = 10e9  # what a GPU computes while the kernels of one more product are started: 0.2 ms at 50 TFLOP/s


@dataclass(frozen=True, slots=True)
class Portion:
    """One grouped product: positions in the stack, in its order, and their rows, padded to the longest."""

    positions: tuple[int, ...]
    longest: int

    @property
    def is_run(self) -> bool:
        """Whether they are neighbours in the stack, so that their weights can be used where they lie."""
        return self.positions[-1] - self.positions[0] + 1 == len(self.positions)

    def cost_rows(self, launch_rows: float) -> float:
        """What it takes, in rows of one expert."""
        return launch_rows + len(self.positions) * (self.longest + (0 if self.is_run else COPY_ROWS))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one grouped product may take of the device's memory, and what it costs beside its rows."""

    experts: int
    rows: int  # padding included
    launch_rows: float = 0.0  # rows of one expert that are computed while one more product is started


def plan(num_rows: Mapping[int, int], bounds: Bounds) -> list[Portion]:
    """Portions for positions with so many rows each.

    Either in buckets whose longest has less than twice the rows of the shortest, each with its weights copied side by
    side where they are no neighbours; or all as one run of neighbours, with nothing but padding for those between them
    that have no work: what costs less. So padding costs at most as much as the rows themselves, COPY_ROWS per expert
    and one launch per power of two.
    """
    if not num_rows:
        return []
    buckets: dict[int, list[int]] = {}
    for position in sorted(num_rows):
        buckets.setdefault(num_rows[position].bit_length(), []).append(position)
    in_buckets = [Portion(tuple(bucket), max(num_rows[p] for p in bucket)) for _, bucket in sorted(buckets.items())]
    as_run = [Portion(tuple(range(min(num_rows), max(num_rows) + 1)), max(num_rows.values()))]
    ways = [[piece for portion in way for piece in _within(portion, num_rows, bounds)] for way in (as_run, in_buckets)]
    return min(ways, key=lambda way: sum(portion.cost_rows(bounds.launch_rows) for portion in way))


def _within(portion: Portion, num_rows: Mapping[int, int], bounds: Bounds) -> Iterator[Portion]:
    """The portion in pieces that fit; one expert always does. Pieces without any work are left out."""
    at_once = max(1, min(bounds.experts, bounds.rows // portion.longest))
    for start in range(0, len(portion.positions), at_once):
        positions: Sequence[int] = portion.positions[start : start + at_once]
        longest = max(num_rows.get(position, 0) for position in positions)
        if longest:
            yield Portion(tuple(positions), longest)
