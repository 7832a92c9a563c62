"""The trainers of one project and the runs that they report, bounded so that no stranger displaces another. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from backend.live.run_memory import (
    MAX_RUNS,
    MAX_RUNS_PER_TRAINER,
    MAX_TRAINERS,
    RUN_IS_LIVE_S,
    TRAINER_FORGOTTEN_S,
    RunMemory,
    TrainerMemory,
)
from learning_at_home.coordinator_messages import Report
from learning_at_home.errors import NodeOverloaded

log = logging.getLogger(__name__)

RunKey = tuple[str, str]  # trainer, name


@dataclass(slots=True)
class RunBook:
    trainers: dict[str, TrainerMemory] = field(default_factory=dict)
    runs: dict[RunKey, RunMemory] = field(default_factory=dict)
    leaving: list[RunMemory] = field(default_factory=list)  # forgotten here, with something that is not written yet

    def introduced(self, public_key: bytes, name: str, now: float) -> TrainerMemory:
        """A trainer opened its socket. Raises NodeOverloaded when more are known than can be watched."""
        trainer = TrainerMemory.introduced(public_key, name, now)
        if trainer.id not in self.trainers and len(self.trainers) >= MAX_TRAINERS:
            away = min(
                (each for each in self.trainers.values() if not each.connected),
                key=lambda each: each.heard_s,
                default=None,
            )
            if away is None:
                raise NodeOverloaded(f"{MAX_TRAINERS:,} trainers are connected and no more are taken")
            del self.trainers[away.id]
        self.trainers[trainer.id] = trainer
        return trainer

    def reported(self, trainer: TrainerMemory, report: Report, now: float) -> RunMemory | None:
        """The run, if it is new. A run for which there is no room is not taken in."""
        trainer.heard_s = now
        key = (trainer.id, report.run)
        known = self.runs.get(key)
        if known is None and not self._make_room(trainer):
            log.info("no room for the run %s of %s: all trainers of the others are connected", report.run, trainer.name)
            return None
        run = known or RunMemory(trainer.id, trainer.name, report.run, started_s=now, last_heard_s=now)
        self.runs[key] = run
        run.hears(report, now)
        run.live = True
        return run if known is None else None

    def lost(self, trainer: TrainerMemory, now: float) -> None:
        """Its socket is gone."""
        trainer.connected, trainer.heard_s = False, now
        for run in self._of(trainer.id):
            run.live = False

    def advance(self, now: float) -> None:
        """What was not reported of for a while is not live; who is gone for long is forgotten."""
        for run in self.runs.values():
            run.live = run.live and now - run.last_heard_s <= RUN_IS_LIVE_S
        for trainer in list(self.trainers.values()):
            if not trainer.connected and now - trainer.heard_s > TRAINER_FORGOTTEN_S:
                del self.trainers[trainer.id]

    def latest(self) -> RunMemory | None:
        """The live run that was heard last, else the last one."""
        return max(self.runs.values(), key=lambda run: (run.live, run.last_heard_s), default=None)

    def take_unsaved(self) -> list[RunMemory]:
        """Runs that the database lacks, or lacks something of."""
        taken, self.leaving = self.leaving, []
        return taken + [run for run in self.runs.values() if run.unsaved]

    def _of(self, trainer_id: str) -> list[RunMemory]:
        return [run for run in self.runs.values() if run.trainer_id == trainer_id]

    def _make_room(self, trainer: TrainerMemory) -> bool:
        """A trainer's own oldest run goes when it has many; else the oldest of those whose trainers are away."""
        own = self._of(trainer.id)
        if len(own) >= MAX_RUNS_PER_TRAINER:
            candidates = own
        elif len(self.runs) < MAX_RUNS:
            return True
        else:
            connected = {each.id for each in self.trainers.values() if each.connected and each.id != trainer.id}
            candidates = [run for run in self.runs.values() if run.trainer_id not in connected]
        oldest = min(candidates, key=lambda run: run.last_heard_s, default=None)
        if oldest is None:
            return False
        del self.runs[oldest.trainer_id, oldest.name]
        if oldest.unsaved:
            self.leaving.append(oldest)
            del self.leaving[:-MAX_RUNS]
        return True
