"""Child processes that never outlive their parent: started, watched, stopped in order, first politely, then by force.

Every child leads a session of its own: Ctrl-C in a terminal reaches only the parent, which then stops them one group
after the other, and a signal to a child's process group also reaches what it started. A child's standard input is
a pipe that closes when the parent is gone, even by SIGKILL: see learning_at_home.parent_watch.
Async; POSIX (sessions and process groups). Knows nothing of what the children do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STOP_GRACE_S = 8.0  # from SIGTERM to SIGKILL; a node leaves in under 2 s, on a machine that is very busy in 6
MAX_TAIL_BYTES = 64 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start. With `speaks` its standard output can be read by `lines()`; else that goes to the log too."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    speaks: bool = False


class Child:
    """One running or ended process.

    The pipes are our own rather than asyncio's: its `wait()` also waits for the end of its pipes, which a grandchild
    may hold open, or which nobody may be reading.
    """

    def __init__(self, spec: ChildSpec, process: Process, lifeline: int, output: int | None) -> None:
        self.spec = spec
        self._process = process
        self._lifeline = lifeline  # the other end of its standard input: closes with us
        self._output = output

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit code once it has ended; minus the signal's number when a signal ended it."""
        return await self._process.wait()

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """What it says on standard output, line by line, until it closes it. Once, for a child that `speaks`."""
        assert self._output is not None, f"{self.name} was not started with speaks=True, or was listened to already"
        output, self._output = os.fdopen(self._output, "rb"), None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), output
        )
        try:
            async for line in reader:
                yield line
        finally:
            transport.close()

    async def last_log_lines(self, count: int = 20) -> list[str]:
        """The end of its log."""
        return await asyncio.to_thread(_tail, self.spec.log_path, count)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started. Nothing once it has ended: its number may be another's."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended, and asyncio is about to notice
                os.killpg(self.pid, number)

    def close(self) -> None:
        """Close our ends of its pipes."""
        os.close(self._lifeline)
        if self._output is not None:
            os.close(self._output)
            self._output = None


class Supervisor:
    """Starts children; whatever ends the `async with` block, none of them is left running after it.

    Leaving the block stops them in the reverse order of starting, all of one `stop_order` at a time.
    """

    def __init__(self, *, stop_grace_s: float = STOP_GRACE_S) -> None:
        self._stop_grace_s = stop_grace_s
        self._children: dict[int, list[Child]] = {}

    @property
    def children(self) -> list[Child]:
        return [child for group in self._children.values() for child in group]

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for stop_order in sorted(self._children):
                await self.stop(self._children[stop_order])
        finally:  # also when cancelled while stopping, by a second Ctrl-C
            self.kill_all()
            await _reap(self.children)
            for child in self.children:
                child.close()

    async def start(self, spec: ChildSpec, *, stop_order: int = 0) -> Child:
        """A new child. Those of the lowest `stop_order` are stopped first. Raises OSError when it cannot be started."""
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as childs_ends:
            log_file = await asyncio.to_thread(_open_log, spec.log_path)
            childs_ends.callback(os.close, log_file)
            stdin, lifeline = os.pipe()  # neither end is inheritable, so no other child holds this one's lifeline
            childs_ends.callback(os.close, stdin)
            on_failure.callback(os.close, lifeline)
            output, stdout = os.pipe() if spec.speaks else (None, log_file)
            if output is not None:
                childs_ends.callback(os.close, stdout)
                on_failure.callback(os.close, output)
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                stdin=stdin,
                stdout=stdout,
                stderr=log_file,
                env=dict(spec.environment),
                start_new_session=True,
            )
            on_failure.pop_all()
        child = Child(spec, process, lifeline, output)
        self._children.setdefault(stop_order, []).append(child)
        log.info("started %s as process %d", spec.name, process.pid)
        return child

    async def stop(self, children: Iterable[Child]) -> None:
        """End these: SIGTERM, then SIGKILL for what still runs after the grace time. Returns when all are gone."""
        children = list(children)
        for child in children:
            child.signal_group(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stop_grace_s):
                await _reap(children)
        for child in children:
            if child.is_running:
                log.warning("%s did not stop within %.0f s: killed", child.name, self._stop_grace_s)
                child.signal_group(signal.SIGKILL)
        await _reap(children)

    def kill_all(self) -> None:
        """End everything at once."""
        for child in self.children:
            child.signal_group(signal.SIGKILL)


async def _reap(children: Iterable[Child]) -> None:
    for child in children:
        await child.wait()


def _open_log(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _tail(path: Path, count: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []
