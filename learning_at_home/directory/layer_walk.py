"""Read the announcements of a layer from the DHT: down its prefixes, one round of lookups per dimension. Async.

The first prefix's key tells which first indices live, and has up to four announcements of each; the keys of those
indices have the rest. What the reader holds already does not travel again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from learning_at_home.dht.records import Record, key_of
from learning_at_home.dht.slot_exchange import FoundSlots, SlotAsk
from learning_at_home.dht.slots import MAX_LIVES
from learning_at_home.directory.announcement import prefix_name
from learning_at_home.project import LayerSpec

MAX_WALKED = 1_024  # keys per round: a larger grid is for the mirror, or for a beam search

Indices = tuple[int, ...]  # the first of a uid


class SlotSource(Protocol):
    """What a directory asks of a DHT: DhtNode has it, and so have the tests' fakes."""

    async def find_slots(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]: ...


class Walked(NamedTuple):
    """`answered`: whether any peer did. `whole`: whether all living prefixes were read."""

    answered: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class PrefixReader:
    """Reads prefixes' keys of one layer. `known`: tags of what the reader holds of cells below these indices.
    `covered`: the indices after these for which it knows somebody, given these records too.
    """

    source: SlotSource
    project: str
    layer: LayerSpec
    known: Callable[[Indices], tuple[bytes, ...]]
    covered: Callable[[Indices, Iterable[Record]], Collection[int]]
    take: Callable[[Iterable[Record]], None]

    async def read(
        self, prefixes: Sequence[Indices], wanted: Callable[[Indices], tuple[int, ...] | None]
    ) -> tuple[dict[Indices, list[int]], bool]:
        """Which indices live after each of these, all of one length, and whether any peer answered; one crawl.

        The records come in on the way: those in the slots that are `wanted`, None: all.
        """
        grid = self.layer.cells
        asks: list[SlotAsk] = []
        asked: list[Indices] = []
        for indices in prefixes:
            size = grid.shape[len(indices)]
            key = key_of(prefix_name(self.project, self.layer.prefix, grid, indices))
            covered = functools.partial(self.covered, indices)
            asks.append(SlotAsk(key, wanted=wanted(indices), known=self.known(indices), covered=covered))
            if len(indices) < len(grid.shape) - 1:
                asks += (SlotAsk(key, wanted=(), first=first) for first in range(MAX_LIVES, size, MAX_LIVES))
            asked += [indices] * (len(asks) - len(asked))
        living: dict[Indices, list[int]] = {indices: [] for indices in prefixes}
        answered = False
        for indices, found in zip(asked, await self.source.find_slots(asks), strict=True):
            answered = answered or found.num_answered > 0
            self.take((*found.records, *found.tombstones))
            living[indices] += (index for index in sorted(found.lives_s) if index < grid.shape[len(indices)])
        return living, answered


async def walk_layer(reader: PrefixReader) -> Walked:
    """Read all that lives, at most MAX_WALKED keys per dimension."""
    prefixes: list[Indices] = [()]
    answered, whole = False, True
    for _ in reader.layer.grid:
        living, any_answered = await reader.read(prefixes, lambda indices: None)
        answered = answered or any_answered
        prefixes = [(*indices, index) for indices, following in living.items() for index in following]
        if len(next(iter(prefixes), ())) < len(reader.layer.grid):
            whole = whole and len(prefixes) <= MAX_WALKED
            del prefixes[MAX_WALKED:]
    return Walked(answered, whole)
