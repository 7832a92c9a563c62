"""Trainers and their runs, as they report them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from backend.live.curves import ThinnedCurve
from backend.live.token_bucket import TokenBucket
from dashboard.view import RunRow
from learning_at_home.coordinator_messages import Report, TrainerTelemetry
from learning_at_home.readable_names import is_valid_name, readable_name

RUN_IS_LIVE_S = 60.0  # after the last report: a step of a large model, or a test between two, takes that long
MAX_METRICS = 32  # per run; names beyond them are ignored
MAX_LINES = 4  # of one chart
MAX_RUNS = 100  # per project in memory; older ones are left to the database
MAX_RUNS_PER_TRAINER = 5
MAX_TRAINERS = 10_000  # as many as there may be sockets
TRAINER_FORGOTTEN_S = 600.0


@dataclass(slots=True)
class TrainerMemory:
    """One trainer that is or was connected."""

    id: str
    name: str
    connected: bool = True
    heard_s: float = 0.0
    telemetry: TrainerTelemetry | None = None
    before: TrainerTelemetry | None = None  # the one before it: what failed lately is their difference
    event_budget: TokenBucket = field(default_factory=lambda: TokenBucket(per_second=1 / 60, burst=5))

    @classmethod
    def introduced(cls, public_key: bytes, name: str, now: float) -> TrainerMemory:
        return cls(public_key.hex(), name if is_valid_name(name) else readable_name(public_key), heard_s=now)

    def hears(self, message: TrainerTelemetry, now: float) -> None:
        same = self.telemetry is not None and self.telemetry.started_s == message.started_s
        self.before = self.telemetry if same else None
        self.telemetry, self.heard_s = message, now

    @property
    def lately(self) -> tuple[int, int]:
        """Calls and failures between its last two messages (of all its time when there was one)."""
        if self.telemetry is None:
            return 0, 0
        if self.before is None:
            return self.telemetry.calls, self.telemetry.failures
        return (
            max(0, self.telemetry.calls - self.before.calls),
            max(0, self.telemetry.failures - self.before.failures),
        )


@dataclass(slots=True)
class RunMemory:
    """One run of one trainer."""

    trainer_id: str
    trainer: str
    name: str
    started_s: float
    last_heard_s: float
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, ThinnedCurve] = field(default_factory=dict)
    unsaved: bool = False
    live: bool = True
    began_again: bool = False  # so its start is written anew; else a stored one is the right one

    def hears(self, report: Report, now: float) -> None:
        """Take in a report. One for a slightly earlier step belongs to no curve; one for a much earlier step is a run
        that began again under its old name.
        """
        self.last_heard_s, self.unsaved = now, True
        if report.step < self.step / 2:
            self.started_s, self.metrics, self.began_again = now, {}, True
            self.curves = {metric: ThinnedCurve(rewritten=True) for metric in self.curves}
        elif report.step < self.step:
            return
        self.step = report.step
        for metric, value in report.metrics.items():
            if metric not in self.curves and len(self.curves) >= MAX_METRICS:
                continue
            self.metrics[metric] = value
            self.curves.setdefault(metric, ThinnedCurve()).add(report.step, value)

    def row(self) -> RunRow:
        return RunRow(
            name=self.name,
            trainer=self.trainer,
            trainer_id=self.trainer_id,
            step=self.step,
            metrics=dict(self.metrics),
            started_s=self.started_s,
            last_heard_s=self.last_heard_s,
            live=self.live,
        )

    def drawn_lines(self) -> list[str]:
        """The metrics that the training's chart draws: losses, by their name, or else what came first."""
        losses = [metric for metric in self.curves if "loss" in metric.lower()]
        return (losses or list(self.curves))[:MAX_LINES]
