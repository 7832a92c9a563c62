"""States as people see them: every word has a glyph and a colour's name, the same on every page, chart and badge.

Pure tables. Colour never stands alone: who cannot tell colours apart reads the glyph, who sees neither hears the word.
`static/js/health.js` holds the same tables; a test keeps them equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

GLYPHS: Mapping[str, str] = {
    "serving": "✓",
    "degraded": "~",
    "stale": "–",
    "lost": "×",
    "orphaned": "!",
    "vacant": "○",
    "online": "✓",
    "joining": "+",
    "draining": "↓",
    "paused": "‖",
    "offline": "×",
}

# Word -> name of the colour token. What is not a word of ours (a later version's) is drawn as unknown: stale's grey.
TINTS: Mapping[str, str] = {
    "serving": "serving",
    "degraded": "degraded",
    "stale": "stale",
    "lost": "lost",
    "orphaned": "orphaned",
    "vacant": "vacant",
    "online": "serving",
    "joining": "accent",
    "draining": "accent",
    "paused": "stale",
    "offline": "faint",
    "": "none",
}

EVENT_GLYPHS: Mapping[str, str] = {
    "joined": "+",
    "left": "−",
    "serving": "✓",
    "degraded": "~",
    "stale": "–",
    "lost": "×",
    "orphaned": "!",
    "run": "▸",
    "conflict": "≠",
    "notice": "i",
}

EVENT_TINTS: Mapping[str, str] = {
    "joined": "accent",
    "left": "faint",
    "serving": "serving",
    "degraded": "degraded",
    "stale": "stale",
    "lost": "lost",
    "orphaned": "orphaned",
    "run": "accent",
    "conflict": "degraded",
    "notice": "faint",
}


def glyph(word: str) -> str:
    """One sign for a state of an expert or a node."""
    return GLYPHS.get(word, "·")


def tint(word: str) -> str:
    """The colour token of a state, as in the class `tint-serving`."""
    return TINTS.get(word, "stale")


def event_glyph(kind: str) -> str:
    return EVENT_GLYPHS.get(kind, "·")


def event_tint(kind: str) -> str:
    return EVENT_TINTS.get(kind, "faint")


def hours(words: Sequence[str]) -> str:
    """`22 h online, 2 h offline`: a node's last day for who does not see the strokes."""
    counts = Counter(word for word in words if word)
    return ", ".join(f"{number} h {word}" for word, number in counts.items()) or "not seen"
