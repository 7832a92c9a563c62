"""Read all announcements of a layer from the DHT: down its prefixes, one round of lookups per dimension. Async.

The first prefix's key tells which first indices live, and has up to four announcements of each; the keys of those
indices have the rest. What the reader holds already does not travel again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from learning_at_home.dht.records import Record, key_of
from learning_at_home.dht.slot_exchange import FoundSlots, SlotAsk
from learning_at_home.dht.slots import MAX_LIVES
from learning_at_home.directory.announcement import prefix_name
from learning_at_home.project import LayerSpec

MAX_WALKED = 1_024  # keys per round: a larger grid is for the mirror, or for a beam search


class SlotSource(Protocol):
    """What a directory asks of a DHT: DhtNode has it, and so have the tests' fakes."""

    async def find_slots(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]: ...


async def walk_layer(
    source: SlotSource,
    project: str,
    layer: LayerSpec,
    known: Callable[[tuple[int, ...]], tuple[bytes, ...]],
    take: Callable[[Iterable[Record]], None],
) -> bool:
    """Whether any peer answered. `known`: tags of what the reader holds of cells below these indices."""
    grid = layer.cells
    prefixes: list[tuple[int, ...]] = [()]
    answered = False
    for depth, size in enumerate(grid.shape):
        asks: list[SlotAsk] = []
        asked: list[tuple[int, ...]] = []
        is_last = depth == len(grid.shape) - 1
        for indices in prefixes:
            key = key_of(prefix_name(project, layer.prefix, grid, indices))
            asks.append(SlotAsk(key, known=known(indices)))
            if not is_last:
                asks += (SlotAsk(key, wanted=(), first=first) for first in range(MAX_LIVES, size, MAX_LIVES))
            asked += [indices] * (len(asks) - len(asked))
        prefixes = []
        for indices, found in zip(asked, await source.find_slots(asks), strict=True):
            answered = answered or found.num_answered > 0
            take((*found.records, *found.tombstones))
            prefixes += ((*indices, index) for index in sorted(found.lives_s) if index < size)
        del prefixes[MAX_WALKED:]
    return answered
