"""The demo's voice: everything it says to a person or a script passes here.

Standard output gets the address first and the result last; progress and news go to standard error, so that a script may
read the one without the other. On a terminal a single line is rewritten; elsewhere a line is added now and then.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TextIO

from learning_at_home.demo.progress_bar import bar_line, duration, log_line
from learning_at_home.demo.trainer_messages import Progress, Waiting

LOG_INTERVAL_S = 10.0  # of progress where nothing can be rewritten: 30 lines for the longest demo
ERASE_LINE = "\r\x1b[2K"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a script reads from the last line. `expert_updates` is None when no coordinator was left to be asked."""

    accuracy: float
    steps: int
    rows_per_second: float
    calls: int
    failures: int
    expert_updates: int | None
    seconds: float


class Screen:
    """Two streams and what was last said on them. Callers pass `now`, monotonic seconds."""

    def __init__(self, out: TextIO, err: TextIO, *, headless: bool) -> None:
        self._out = out
        self._err = err
        self._headless = headless
        self._rewrites = err.isatty() and not headless
        self._ascii_only = not (err.encoding or "ascii").lower().startswith("utf")
        self._unfinished_line = False
        self._last_log_at = float("-inf")

    def address(self, url: str) -> None:
        """The first line of standard output."""
        self._say(self._out, f"dashboard: {url}")

    def news(self, text: str) -> None:
        """Something a person should know, on lines of its own."""
        self._say(self._err, text)

    def progress(self, message: Waiting | Progress, now: float) -> None:
        """Show where the training stands: the bar, or a line every LOG_INTERVAL_S. Nothing when headless."""
        if self._headless:
            return
        if self._rewrites:
            columns = shutil.get_terminal_size().columns - 1  # the last column would wrap
            self._err.write(ERASE_LINE + bar_line(message, columns, ascii_only=self._ascii_only))
            self._err.flush()
            self._unfinished_line = True
        elif now - self._last_log_at >= LOG_INTERVAL_S:
            self._last_log_at = now
            self._say(self._err, log_line(message))

    def result(self, result: DemoResult, goal: float) -> None:
        """The last line of standard output: a JSON object when headless, else a sentence."""
        if self._headless:
            rounded = {
                name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(result).items()
            }
            self._say(self._out, json.dumps(rounded))
            return
        verdict = "reached" if result.accuracy >= goal else "missed"
        updates = "" if result.expert_updates is None else f", {result.expert_updates:,} updates of experts"
        self._say(
            self._out,
            f"test accuracy {result.accuracy:.3f}: the goal of {goal:.2f} is {verdict}."
            f" {result.steps} steps in {duration(result.seconds)}, {result.rows_per_second:,.0f} rows/s,"
            f" {result.calls:,} calls to experts, {result.failures:,} failed{updates}.",
        )

    def _say(self, stream: TextIO, text: str) -> None:
        if self._unfinished_line:
            self._err.write("\n")
            self._err.flush()
            self._unfinished_line = False
        stream.write(text + "\n")
        stream.flush()
