"""Where `swarm.report` goes beside the dashboard: a CSV file, TensorBoard, any function of a step and its metrics.

Called in the thread that reports; disk work, but no network. What a sink raises never reaches the training.
"""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from learning_at_home.errors import ConfigError

log = logging.getLogger(__name__)

# `sink(step, metrics)`. NaN and infinity are in the metrics here. `sink.close()`, where there is one, ends it.
Sink = Callable[[int, Mapping[str, float]], object]
CSV_COLUMNS = ("unix_s", "step", "metric", "value")


class CsvSink:
    """`swarm.add_sink(lah.CsvSink("run.csv"))`: a line per metric, so that their names may change on the way.

    An existing file is continued. `pandas.read_csv("run.csv").pivot(index="step", columns="metric", values="value")`
    makes a table of a run. Making one raises ConfigError when the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ConfigError when the file cannot be written."""
        try:
            self._file: TextIO = Path(path).open("a", encoding="utf-8", newline="")  # noqa: SIM115 - until close
        except OSError as error:
            raise ConfigError(f"CsvSink: {path} cannot be written: {error}") from error
        self._lines = csv.writer(self._file)
        if self._file.tell() == 0:
            self._lines.writerow(CSV_COLUMNS)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line per metric, in the file when this returns."""
        now_s = round(time.time(), 3)
        self._lines.writerows([(now_s, step, name, repr(value)) for name, value in metrics.items()])
        self._file.flush()  # who reads along, or a crash, finds whole steps

    def close(self) -> None:
        """End the file."""
        self._file.close()


class TensorBoardSink:
    """`swarm.add_sink(lah.TensorBoardSink("runs/first"))`: a scalar per metric. Needs the extra `tensorboard`.

    Making one raises ConfigError without it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises ConfigError without the package."""
        if find_spec("tensorboard") is None:
            raise ConfigError("TensorBoardSink needs one package more: pip install 'learning-at-home[tensorboard]'")
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only this sink needs it

        self._writer = SummaryWriter(str(folder))

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """A scalar per metric, written within two minutes."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()


class Sinks:
    """The sinks of a swarm. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a sink may itself report, add a sink, or close the swarm
        self._sinks: list[Sink] = []
        self._complained: set[int] = set()  # of which sinks, by their place

    def add(self, sink: Sink) -> None:
        with self._lock:
            self._sinks.append(sink)

    def put(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell every sink; one that raises is complained about once and told again next time."""
        with self._lock:
            for place, sink in enumerate(self._sinks):
                if not self._sinks:
                    return  # the one before has closed all
                try:
                    sink(step, metrics)
                except Exception:  # the sink's edge: a full disk must not end a training
                    if place not in self._complained:
                        self._complained.add(place)
                        log.exception("%s failed at step %d; training goes on", _name(sink), step)

    def close(self) -> None:
        """What is put after it goes nowhere. May be called twice."""
        with self._lock:
            sinks, self._sinks = self._sinks, []
        for sink in sinks:
            close = getattr(sink, "close", None)
            if close is None:
                continue
            try:
                close()
            except Exception:  # as above
                log.exception("%s could not be closed", _name(sink))


def _name(sink: Sink) -> str:
    return f"the sink {getattr(sink, '__name__', type(sink).__name__)}"
