"""One line of text about a training: a bar where a terminal rewrites it, a sentence where it becomes part of a log.

Pure: takes messages and a width, returns text.
"""

from __future__ import annotations

from learning_at_home.demo.trainer_messages import Progress, Waiting

FULL, EMPTY = "█", "░"
ASCII_FULL, ASCII_EMPTY = "#", "."
MIN_BAR_COLUMNS = 4  # below this the bar says less than the numbers beside it
MAX_BAR_COLUMNS = 40


def bar_line(message: Waiting | Progress, columns: int, *, ascii_only: bool = False) -> str:
    """At most `columns` characters: a bar as wide as the numbers leave room for, then the numbers."""
    words = _words(message)
    share = message.alive / message.wanted if isinstance(message, Waiting) else message.step / message.steps
    room = min(MAX_BAR_COLUMNS, columns - len(words) - 1)
    if room < MIN_BAR_COLUMNS:
        return words[:columns]
    full = round(min(1.0, max(0.0, share)) * room)
    marks = (ASCII_FULL, ASCII_EMPTY) if ascii_only else (FULL, EMPTY)
    return f"{marks[0] * full}{marks[1] * (room - full)} {words}"


def log_line(message: Waiting | Progress) -> str:
    """The same as a sentence for a log."""
    return _words(message)


def duration(seconds: float) -> str:
    """`48 s`, `2 min 05 s`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _words(message: Waiting | Progress) -> str:
    if isinstance(message, Waiting):
        return f"{message.alive} of {message.wanted} experts alive"
    accuracy = "-" if message.accuracy is None else f"{message.accuracy:.3f}"
    left = "" if message.remaining_s is None else f" · {duration(message.remaining_s)} left"
    return (
        f"step {message.step}/{message.steps} · loss {message.loss:.3f} · accuracy {accuracy}"
        f" · {message.rows_per_second:,.0f} rows/s{left}"
    )
