"""Which slots of the DHT's prefix keys an announcement fills: what a holder of such a key asks. Pure."""

from __future__ import annotations

import bisect
import math
import re
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from learning_at_home.dht.records import Record, key_of
from learning_at_home.directory.announcement import ANNOUNCEMENT_LIFE_S, Announcement, node_name, spans_by_prefix
from learning_at_home.errors import InvalidUid, WireError
from learning_at_home.expert_uid import Grid

MAX_LIFE_MS = int(2 * ANNOUNCEMENT_LIFE_S * 1000)  # whoever keeps a place must renew it
MAX_REMEMBERED = 256  # records taken apart; one comes with dozens of names
_NAME = re.compile(r"slots/([^/]+)/([^/]+)/([0-9]{1,7}(?:x[0-9]{1,7}){0,7})/((?:[0-9]{1,7}(?:\.[0-9]{1,7}){0,6})?)")


@dataclass(frozen=True, slots=True)
class _Claims:
    """What of an announcement decides on its slots."""

    home: str
    project: str
    spans: dict[str, Sequence[tuple[int, int]]]  # by prefix, in order; none when the node cannot be called


class AnnouncementSlots:
    """A node's own key has one slot, for its own announcement. A prefix key has one slot per next index, which each
    announcement fills that claims cells there and whose node is online.
    """

    def __init__(self) -> None:
        self._remembered: OrderedDict[bytes, _Claims | None] = OrderedDict()

    def slots(self, record: Record, name: str) -> Collection[int]:
        signature = record.signature
        if signature not in self._remembered:
            self._remembered[signature] = _claims_of(record)
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        claims = self._remembered[signature]
        if claims is None:
            return ()
        place = _place_of(name)
        if place is None:
            return (0,) if name == claims.home else ()
        if place[0] != claims.project:
            return ()
        return _following(claims.spans.get(place[1], ()), *place[2])


def next_indices(spans: Sequence[tuple[int, int]], grid: Grid, indices: tuple[int, ...]) -> list[int]:
    """Which indices may follow these on the way to a cell of the spans (in order, disjoint). Ascending."""
    return _following(spans, *_window(grid, indices))


def _window(grid: Grid, indices: tuple[int, ...]) -> tuple[int, int, int]:
    """Of the cells below a prefix the first, how many are below each next index, and how many of these there are."""
    depth = len(indices)
    stride = math.prod(grid.shape[depth + 1 :])
    first = 0
    for index, size in zip(indices, grid.shape, strict=False):
        first = first * size + index
    return first * grid.shape[depth] * stride, stride, grid.shape[depth]


def _following(spans: Sequence[tuple[int, int]], first: int, stride: int, size: int) -> list[int]:
    end = first + size * stride
    following: list[int] = []
    next_one = 0
    for number in range(max(0, bisect.bisect_right(spans, (first, end)) - 1), len(spans)):
        span_first, span_end = spans[number]
        if span_first >= end:
            break
        lowest = (span_first - first) // stride
        beyond = -((first - span_end) // stride) if span_end < end else size
        if beyond > next_one:
            following += range(lowest if lowest > next_one else next_one, beyond)
            next_one = beyond
    return following


def _claims_of(record: Record) -> _Claims | None:
    """None for what is no announcement of its publisher's, or would stay too long."""
    if record.expires_ms - record.sequence > MAX_LIFE_MS:
        return None
    try:
        announcement = Announcement.from_bytes(record.value)
    except WireError:
        return None
    home = node_name(announcement.project, record.publisher)
    if record.key != key_of(home):
        return None
    can_be_called = announcement.state == "online" and announcement.endpoints
    return _Claims(home, announcement.project, spans_by_prefix(announcement.claims) if can_be_called else {})


@lru_cache(maxsize=4_096)
def _place_of(name: str) -> tuple[str, str, tuple[int, int, int]] | None:
    """Project, layer prefix and window; None for what is no prefix key's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        grid = Grid(tuple(map(int, match[3].split("x"))))
    except InvalidUid:
        return None
    indices = tuple(map(int, match[4].split("."))) if match[4] else ()
    if len(indices) >= len(grid.shape) or any(i >= n for i, n in zip(indices, grid.shape, strict=False)):
        return None
    return match[1], match[2], _window(grid, indices)
