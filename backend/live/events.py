"""What happened, in words: which changes of state are worth a line, and how many may be told of one node. Pure."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from backend.live.node_memory import CellKey, NodeMemory
from backend.live.run_memory import RunMemory, TrainerMemory
from backend.live.token_bucket import TokenBucket
from dashboard.view import Event, ExpertHealth
from learning_at_home.project import ProjectRecord

log = logging.getLogger(__name__)

EventKind = Literal["joined", "left", "serving", "degraded", "stale", "lost", "orphaned", "run", "conflict", "notice"]
# Of one project and kind, per second and at once. What peers word themselves is less than what we saw happen.
WORDED_BY_PEERS: frozenset[EventKind] = frozenset({"notice", "conflict", "run"})
WORDED_PER_S, WORDED_BURST = 0.1, 20.0
SEEN_PER_S, SEEN_BURST = 2.0, 200.0
MAX_UNSAVED_EVENTS = 5_000  # while the database cannot be written; the oldest go


EventBudgets = dict[EventKind, TokenBucket]


@dataclass(slots=True)
class EventWriter:
    """Puts events where they are shown and where they wait to be written."""

    record: ProjectRecord
    next_id: Callable[[], int]
    shown: deque[Event]
    unsaved: list[Event]
    budgets: EventBudgets

    def joined(self, node: NodeMemory, claims: Sequence[CellKey], now: float) -> None:
        if node.event_budget.take(now):
            self._tell("joined", node.name, f"joined with {experts(claims)}", now)

    def left(self, node: NodeMemory, now: float) -> None:
        if node.event_budget.take(now):
            self._tell("left", node.name, "left" if node.evidence.withdrawn else "stopped answering", now)

    def notice(self, node: NodeMemory, text: str, now: float) -> None:
        if node.event_budget.take(now):
            self._tell("conflict" if "yield" in text.lower() else "notice", node.name, text, now)

    def run_started(self, run: RunMemory, trainer: TrainerMemory, now: float) -> None:
        if trainer.event_budget.take(now):
            own_name = run.name == run.trainer  # what the SDK calls a run that its researcher did not name
            self._tell("run", run.name, "started a run" if own_name else f"started by {run.trainer}", now)

    def cells_changed(
        self, node: NodeMemory, before: ExpertHealth, after: ExpertHealth, cells: Sequence[CellKey], now: float
    ) -> None:
        """Experts of one node that changed together are one event. Coming back from `stale` is none, nor going there
        from somewhere worse.
        """
        why = {
            "orphaned": "no checkpoint exists",
            "lost": "a checkpoint exists",
            "degraded": "slow or failing for 30 s",
            "stale": "the node has not answered" if before in ("serving", "degraded") else "",
            "serving": "" if before == "stale" else "answers",
            "vacant": "",
        }[after]
        if after == "vacant" or not why or not node.event_budget.take(now):
            return
        alone = len(cells) == 1
        subject = str(self.record.layer(cells[0][0]).cells.uid(*cells[0])) if alone else node.name
        if after == "serving":
            text = f"is serving on {node.name}" if alone else f"serves {experts(cells)}"
        else:
            text = f"is {after}: {why}" if alone else f"has {experts(cells)} {after}: {why}"
        self._tell(after, subject, text, now)

    def _tell(self, kind: EventKind, subject: str, text: str, now: float) -> None:
        budget = self.budgets.get(kind)
        if budget is None:
            worded = kind in WORDED_BY_PEERS
            budget = TokenBucket(WORDED_PER_S, WORDED_BURST) if worded else TokenBucket(SEEN_PER_S, SEEN_BURST)
            self.budgets[kind] = budget
        if not budget.take(now):
            return
        event = Event(id=self.next_id(), at_s=now, kind=kind, subject=subject[:120], text=text)
        log.info("project %s: %s %s", self.record.id, event.subject, event.text)
        self.shown.appendleft(event)
        self.unsaved.append(event)
        del self.unsaved[:-MAX_UNSAVED_EVENTS]


def experts(cells: Sequence[CellKey]) -> str:
    """ "8 experts of ffn0, ffn1"."""
    prefixes = sorted({prefix for prefix, _ in cells})
    shown = ", ".join(prefixes[:3]) + (f" and {len(prefixes) - 3} more" if len(prefixes) > 3 else "")
    number = f"{len(cells)} expert{'' if len(cells) == 1 else 's'}"
    return f"{number} of {shown}" if cells else "no experts"
