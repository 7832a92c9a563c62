"""Keys under which nobody had anything a moment ago: they need no crawl of their own. Pure: `now` is passed in."""

from __future__ import annotations

from collections import OrderedDict

EMPTY_S = 1.0  # a record that somebody else stores meanwhile is found so much later
MAX_KEYS = 1_024


class EmptyKeys:
    """key -> how many peers said so."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def note(self, key: bytes, num_answered: int, now: float) -> None:
        """So many peers hold nothing under the key."""
        self._seen[key] = (now + EMPTY_S, num_answered)
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_KEYS:
            self._seen.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """Something is being stored there."""
        self._seen.pop(key, None)

    def num_answered(self, key: bytes, now: float) -> int | None:
        """How many said so a moment ago; None: ask."""
        until_s, num_answered = self._seen.get(key, (now, 0))
        return num_answered if now < until_s else None
