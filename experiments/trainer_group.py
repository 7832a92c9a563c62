"""Trainer processes of one swarm, what they say, and what became of one that was killed. Threaded: one reads each."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from experiments.trainer_process import Said, Settings
from node_agent.testing import LocalSwarm
from node_agent.testing.project_files import project_toml

SILENCE_S = 120.0  # of all trainers together: then something hangs


class Point(msgspec.Struct, frozen=True):
    """A measurement of the first trainer; `rows` are those of all, `seconds` count from the first step."""

    rows: int
    seconds: float
    loss: float
    accuracy: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One number of trainers, to the end of their rows."""

    trainers: int
    seed: int
    points: list[Point]
    seconds: float
    shared: list[dict[str, float]]  # of each trainer

    def line(self) -> str:
        last = self.points[-1]
        return (
            f"{self.trainers} trainer(s), seed {self.seed}: {last.rows:,} rows in {self.seconds:.0f} s, test loss "
            f"{last.loss:.3f}, accuracy {last.accuracy:.3f}; changes {[int(s['changes']) for s in self.shared]}, "
            f"staleness {[round(s['staleness'], 1) for s in self.shared]}, "
            f"failures {[int(s['failures']) for s in self.shared]}"
        )


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """A lone trainer that was killed: nobody but the swarm's nodes had its model."""

    untrained_loss: float
    loss_before: float  # the last that it measured
    loss_after: float  # the first of the one that was started instead
    final_loss: float

    def line(self) -> str:
        return (
            f"killed half-way: test loss {self.loss_before:.3f} before, {self.loss_after:.3f} at the new one's start "
            f"({self.untrained_loss:.3f} untrained), {self.final_loss:.3f} at the end"
        )


class TrainerFailed(RuntimeError):
    """A trainer ended by itself before its rows were trained; the message has its last words."""


class TrainerGroup:
    """So many trainers, with equal shares of the rows."""

    def __init__(self, nodes: LocalSwarm, settings: Settings, number: int, seed: int) -> None:
        self._nodes = nodes
        self._settings = settings
        self._number = number
        self._seed = seed

    def train(self) -> Run:
        """To the end of the rows. Raises TrainerFailed."""
        each = self._settings.rows // self._number
        plan = [
            msgspec.structs.replace(
                self._settings,
                rows=each,
                task_seed=self._seed,
                seed=1_000 * self._seed + position,
                run=f"{position + 1} of {self._number}, seed {self._seed}",
                evaluates_every=0 if position else self._settings.evaluates_every,
            )
            for position in range(self._number)
        ]
        rows, points = [0] * self._number, []
        shared: dict[int, dict[str, float]] = {}
        started: float | None = None
        with Processes(self._nodes, plan) as processes:
            for position, said, at in processes.said():
                rows[position] = max(rows[position], said.rows)
                if said.kind == "evaluated" and position == 0 and said.loss is not None and said.accuracy is not None:
                    started = at if started is None else started
                    points.append(Point(sum(rows), at - started, said.loss, said.accuracy))
                if said.shared is not None:
                    shared[position] = said.shared
        in_order = [shared[position] for position in sorted(shared)]
        return Run(trainers=self._number, seed=self._seed, points=points, seconds=points[-1].seconds, shared=in_order)


def kill_and_restart(nodes: LocalSwarm, settings: Settings) -> Restart:
    """A lone trainer, killed (SIGKILL) after half of its rows, and another one in its place. Raises TrainerFailed."""
    losses: list[float] = []
    half = settings.rows // 2
    with Processes(nodes, [settings]) as processes:
        for _, said, _ in processes.said():
            if said.kind == "evaluated" and said.loss is not None:
                losses.append(said.loss)
            if said.rows >= half:
                processes.kill(0)
                break
    again: list[float] = []
    with Processes(nodes, [msgspec.structs.replace(settings, rows=half, seed=settings.seed + 1)]) as processes:
        again = [said.loss for _, said, _ in processes.said() if said.kind == "evaluated" and said.loss is not None]
    return Restart(untrained_loss=losses[0], loss_before=losses[-1], loss_after=again[0], final_loss=again[-1])


class Processes:
    """Trainers from `with` to its end; those that still run then are killed."""

    def __init__(self, nodes: LocalSwarm, plan: Sequence[Settings]) -> None:
        self._nodes = nodes
        self._plan = plan
        self._lines: queue.SimpleQueue[tuple[int, str | None, float]] = queue.SimpleQueue()

    def __enter__(self) -> Processes:
        self._folder = tempfile.TemporaryDirectory(prefix="trainers-")
        project = Path(self._folder.name) / "project.toml"
        project.write_text(project_toml(self._nodes.project), "utf-8")
        self._errors = [Path(self._folder.name) / f"{position}.txt" for position in range(len(self._plan))]
        self._processes = []
        for settings, errors in zip(self._plan, self._errors, strict=True):
            told = msgspec.structs.replace(
                settings,
                bootstrap=tuple(self._nodes.bootstrap),
                project=str(project),
                coordinator=self._nodes.coordinator,
            )
            with errors.open("w") as file:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "experiments.trainer_process", msgspec.json.encode(told).decode()],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                        env={"OMP_NUM_THREADS": "1", **os.environ},
                    )
                )
        self._readers = [
            threading.Thread(target=self._read, args=(position,), daemon=True) for position in range(len(self._plan))
        ]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._folder.cleanup()

    def said(self) -> Iterator[tuple[int, Said, float]]:
        """Who said what, and when (monotonic), until all have finished. Raises TrainerFailed."""
        unfinished = set(range(len(self._plan)))
        while unfinished:
            try:
                position, line, at = self._lines.get(timeout=SILENCE_S)
            except queue.Empty:
                raise TrainerFailed(f"no trainer said anything for {SILENCE_S:g} s") from None
            if line is None:
                raise TrainerFailed(f"trainer {position} ended:\n{self._errors[position].read_text()[-2_000:]}")
            said = msgspec.json.decode(line, type=Said)
            if said.kind == "finished":
                unfinished.discard(position)
            yield position, said, at

    def kill(self, position: int) -> None:
        """Without any goodbye (SIGKILL)."""
        self._processes[position].kill()

    def _read(self, position: int) -> None:
        output = self._processes[position].stdout
        assert output is not None
        finished = False
        for line in output:
            finished = finished or '"finished"' in line
            self._lines.put((position, line, time.monotonic()))
        if not finished:
            self._lines.put((position, None, time.monotonic()))
