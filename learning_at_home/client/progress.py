"""How far a training is, on standard error: by tqdm where that is installed, else by one line that is rewritten."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

REWRITE_INTERVAL_S = 0.1


class Progress(Protocol):
    """Told of each step."""

    def step(self, done: int, loss: float, staleness: int) -> None: ...

    def close(self) -> None:
        """May be called twice."""
        ...


def progress_of(total: int | None, wanted: bool | None) -> Progress:
    """`wanted` None: only on a terminal. `total`: how many steps there will be, where that is known."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return NoProgress()
    try:
        from tqdm import tqdm  # not one of our dependencies
    except ModuleNotFoundError:
        return ProgressLine(total, sys.stderr)
    return TqdmProgress(tqdm(total=total, unit="batch", dynamic_ncols=True))


class NoProgress:
    def step(self, done: int, loss: float, staleness: int) -> None:
        pass

    def close(self) -> None:
        pass


class ProgressLine:
    """`batch 120/300 · loss 0.512 · 7 updates stale · 14.2 batches/s`"""

    def __init__(self, total: int | None, stream: TextIO) -> None:
        self._of = "" if total is None else f"/{total}"
        self._stream = stream
        self._began = time.monotonic()
        self._written = float("-inf")
        self._text = ""
        self._columns = 0  # of what stands there
        self._is_closed = False

    def step(self, done: int, loss: float, staleness: int) -> None:
        now = time.monotonic()
        per_s = done / max(1e-9, now - self._began)
        self._text = f"batch {done}{self._of} · loss {loss:.4g} · {staleness} updates stale · {per_s:.1f} batches/s"
        if now - self._written >= REWRITE_INTERVAL_S:
            self._written = now
            self._write("\r" + self._text.ljust(self._columns))
            self._columns = len(self._text)

    def close(self) -> None:
        if not self._is_closed and self._text:
            self._write("\r" + self._text.ljust(self._columns) + "\n")
        self._is_closed = True

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class TqdmProgress:
    def __init__(self, bar: Any) -> None:  # tqdm has no types
        self._bar = bar

    def step(self, done: int, loss: float, staleness: int) -> None:
        self._bar.set_postfix(loss=f"{loss:.4g}", stale=staleness, refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()
