"""What the coordinator remembers of one node: evidence, telemetry, totals. Pure; times are UTC seconds passed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from backend.live.health import DegradedWatch, NodeEvidence
from backend.live.probe_plan import ProbeSchedule
from backend.live.rates import RATE_WINDOW_S, Counters, CounterTrack, RateWindow, three_digits
from backend.live.rollups import Heartbeats, RollupBook
from backend.live.token_bucket import TokenBucket
from dashboard.view import NodeHealth
from learning_at_home.coordinator_messages import SILENCE_S, ExpertTelemetry, Hardware, NodeTelemetry
from learning_at_home.directory.announcement import Announcement
from learning_at_home.identity import peer_id
from learning_at_home.project import ProjectRecord
from learning_at_home.readable_names import is_valid_name, readable_name

JUDGED_OVER_S = (
    35.0  # calls and failures of an expert are judged over the time that `degraded` must last, and a message
)
CATCH_UP_S = 60.0  # what a longer silence brings counts in the totals, but did not happen in this minute

CellKey = tuple[str, int]  # prefix, flat index


@dataclass(slots=True)
class ExpertMemory:
    """What one node says of one of its experts."""

    track: CounterTrack = field(default_factory=CounterTrack)
    window: RateWindow = field(default_factory=RateWindow)
    watch: DegradedWatch = field(default_factory=DegradedWatch)
    told: ExpertTelemetry | None = None
    heard_s: float = 0.0
    rows_per_s: float = 0.0  # when it was heard; see rows_per_s_at

    def rows_per_s_at(self, now: float) -> float:
        """As reckoned when it was heard (a view is drawn far more often), zero when that is too long ago."""
        return self.rows_per_s if now - self.heard_s < RATE_WINDOW_S else 0.0


def counters_of(told: ExpertTelemetry) -> Counters:
    return Counters(told.rows_forward, told.rows_backward, told.updates, told.calls, told.failures, told.flop)


class NodeMemory:
    """One node in one project."""

    def __init__(self, public_key: bytes, now: float) -> None:
        self.public_key = public_key
        self.id = public_key.hex()
        self.peer_id = peer_id(public_key)
        self.name = readable_name(public_key)
        self.agent = ""
        self.hardware = Hardware()
        self.first_seen_s = now
        self.last_seen_s = now
        self.told_s = 0.0  # last telemetry
        self.evidence = NodeEvidence()
        self.schedule = ProbeSchedule()
        self.announcement: Announcement | None = None
        self.denied: set[CellKey] = set()  # cells that it claims, and answered that it does not host
        self.telemetry: NodeTelemetry | None = None
        self.experts: dict[CellKey, ExpertMemory] = {}
        self.totals = Counters()
        self.window = RateWindow()
        self.seconds_online = 0.0
        self.state: NodeHealth = "joining"
        self.since_s = now
        self.advanced_s = now
        self.hosted: set[CellKey] = set()  # cells whose (last) host it is
        self.beats = Heartbeats()
        self.rollups = RollupBook(60)
        self.restored: tuple[float, Counters] | None = None  # its process's start, and what of it was counted already
        self.ever_answered = False  # only a node that once answered a probe is worth a row in the database
        self.unsaved = False
        self.event_budget = TokenBucket(per_second=0.2, burst=10)  # a flapping node fills nobody's event list

    def is_named(self, name: str) -> None:
        """What it calls itself, if that is a name."""
        self.name = name if is_valid_name(name) else readable_name(self.public_key)

    @property
    def process(self) -> tuple[float, Counters] | None:
        """The start of its running process, and what of its counters is in the totals."""
        if self.telemetry is None:
            return self.restored
        counted = Counters()
        for expert in self.experts.values():
            if expert.track.started_s == self.telemetry.started_s:
                counted += expert.track.last
        return self.telemetry.started_s, counted

    def hears(self, message: NodeTelemetry, record: ProjectRecord, now: float) -> Counters:
        """Take in telemetry; the answer is what was done lately, to be counted in this minute.

        What a long silence brings counts in the totals only. Experts that the project lacks are ignored.
        """
        sizes = {layer.prefix: layer.cells.num_cells for layer in record.layers}
        first = self.telemetry is None
        added = Counters()
        for told in message.experts:
            if told.cell >= sizes.get(told.prefix, 0):
                continue
            expert = self.experts.setdefault((told.prefix, told.cell), ExpertMemory())
            increment = expert.track.advance(message.started_s, counters_of(told))
            expert.window.add(increment, now, JUDGED_OVER_S)
            expert.told, expert.heard_s = told, now
            expert.rows_per_s = three_digits(expert.window.per_second(now).rows)
            added += increment
        if first and self.restored is not None and self.restored[0] == message.started_s:
            added = added.since(self.restored[1])
        self.restored = None
        span_s = now - max(self.told_s, message.started_s)  # in which this work was done
        self.totals += added
        self.window.add(added, now)
        if span_s <= CATCH_UP_S:
            self.rollups.at(now).count(added)
        self.telemetry = message
        self.evidence.heard_s = self.last_seen_s = self.told_s = now
        self.evidence.said = message.state
        self.unsaved = True
        return added if span_s <= CATCH_UP_S else Counters()

    def is_silent(self, now: float) -> bool:
        """Whether its open socket has said nothing for too long."""
        evidence = self.evidence
        return evidence.socket_open and evidence.heard_s is not None and now - evidence.heard_s >= SILENCE_S

    def spend_time(self, now: float) -> None:
        """Count the time since the last call to the state it was in."""
        seconds = min(max(0.0, now - self.advanced_s), 60.0)  # a machine that slept was not watching
        self.advanced_s = now
        if self.state in ("online", "degraded"):
            self.seconds_online += seconds
        self.beats.spend(self.state, now, seconds)
        self.rollups.at(now).spend(self.state, seconds)
