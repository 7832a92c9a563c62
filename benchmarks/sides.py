"""One side of a comparison: a worker process with all its children, which can be stopped while another is timed.

Synchronous. Stopping is SIGSTOP to the whole tree of processes: what is not being timed takes no core.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.worker import Work, command

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 180.0  # a thousand experts are made, or a rival starts its processes
ASK_TIMEOUT_S = 300.0  # the slowest rival needs 10 s for one layer's step, and a sample is two or three
END_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0  # a call into the kernel may have to end first
STOP_POLL_S = 0.001
NOT_RUNNING = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
WORDS = 3  # of its last lines, that a failure shows


class SideFailed(Exception):
    """A side could not start or could not do what it was told; the message goes into the row."""


@dataclass(frozen=True)
class SideSpec:
    """How to start a side. Equal specs share one process."""

    label: str
    module: str
    settings: Mapping[str, object] = field(hash=False)
    python: str = sys.executable
    threads: int = 1
    ask_timeout_s: float = ASK_TIMEOUT_S

    @property
    def key(self) -> str:
        return json.dumps([self.module, dict(self.settings), self.python, self.threads], sort_keys=True)


class Side:
    """A running worker. Ends with the context, together with everything that it started."""

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec

    def __enter__(self) -> Side:
        threads = str(self.spec.threads)
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [self.spec.python, "-m", self.spec.module, json.dumps(dict(self.spec.settings))],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its sides
        )
        try:
            self._read(time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raises SideFailed when its outputs are not those of plain torch."""
        self._ask(command("check"))

    def ready(self) -> None:
        """Raises SideFailed when it does not come back after a stop."""
        self._ask(command("ready"))

    def measure(self, work: Work) -> float:
        """Raises SideFailed with the worker's reason."""
        value = self._ask(command("measure", work))
        if not isinstance(value, int | float):
            raise SideFailed(f"{self.spec.label} answered {value!r} instead of a number")
        return float(value)

    def stop(self) -> None:
        """Returns when all are stopped; looks again for children that were started in between."""
        stopped: set[int] = set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while fresh := [process for process in self._tree() if process.pid not in stopped]:
            for process in fresh:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
                    while process.status() not in NOT_RUNNING and time.monotonic() < deadline:
                        time.sleep(STOP_POLL_S)
                stopped.add(process.pid)

    def resume(self) -> None:
        for process in reversed(self._tree()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """May be called twice."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        tree = self._tree()
        self.resume()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        for process in {*tree, *self._tree()}:  # a rival's main process leaves its children behind
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _ask(self, line: str) -> object:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SideFailed(self._last_words("ended")) from error
        return self._read(time.monotonic() + self.spec.ask_timeout_s)

    def _read(self, deadline: float) -> object:
        line = self._line(deadline)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise SideFailed(self._last_words("ended" if not line else f"said {line[:80]!r}")) from error
        if "error" in answer:
            raise SideFailed(f"{self.spec.label}: {answer['error']}")
        value: object = answer["value"]
        return value

    def _line(self, deadline: float) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise SideFailed(self._last_words("did not answer in time"))
        return self._process.stdout.readline()  # one answer, one line: never half of it for long

    def _last_words(self, what: str) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return f"{self.spec.label} {what}: {' | '.join(lines[-WORDS:])[:400]}"


class Sides:
    """The sides that are alive, started when first needed; all but those in use are stopped."""

    def __init__(self) -> None:
        self._running: dict[str, Side] = {}
        self._failed: dict[str, SideFailed] = {}

    def __enter__(self) -> Sides:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as ending:
            for side in self._running.values():
                ending.callback(side.close)
        self._running.clear()

    def start(self, spec: SideSpec) -> Side:
        """A checked side, stopped. Raises SideFailed, the same one again when it has failed before."""
        if spec.key in self._failed:
            raise self._failed[spec.key]
        side = self._running.get(spec.key)
        if side is None:
            try:
                side = Side(spec).__enter__()
                self._running[spec.key] = side
                side.check()
            except SideFailed as error:
                self._failed[spec.key] = error
                self.end(spec)
                raise
            side.stop()
        return side

    def end(self, spec: SideSpec) -> None:
        """Not needed any more."""
        if side := self._running.pop(spec.key, None):
            side.close()


@contextlib.contextmanager
def running(side: Side) -> Iterator[Side]:
    """The side runs within the context and is stopped outside of it."""
    side.resume()
    try:
        side.ready()
        yield side
    finally:
        side.stop()
