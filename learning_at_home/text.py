"""Text that strangers wrote, before a person sees it in a terminal, a log or an error."""

from __future__ import annotations


def printable(text: str, max_chars: int = 200) -> str:
    """The text without what would steer a terminal or break a line: such characters become '?', the rest is cut."""
    return "".join(c if c.isprintable() else "?" for c in text[:max_chars])
