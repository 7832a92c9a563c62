"""What the coordinator remembers of one node: evidence, telemetry, totals. Pure; times are UTC seconds passed in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from backend.live.health import DegradedWatch, NodeEvidence
from backend.live.probe_plan import ProbeSchedule
from backend.live.rates import NOTHING_DONE, RATE_WINDOW_S, Counters, CounterTrack, RateWindow, three_digits
from backend.live.rollups import Heartbeats, RollupBook
from backend.live.token_bucket import TokenBucket
from dashboard.view import NodeHealth
from learning_at_home.coordinator_messages import SILENCE_S, ExpertTelemetry, Hardware, NodeTelemetry
from learning_at_home.directory.announcement import MAX_CLAIMED_CELLS, Announcement
from learning_at_home.directory.layer_claims import claimed_cells
from learning_at_home.identity import peer_id
from learning_at_home.project import ProjectRecord
from learning_at_home.readable_names import is_valid_name, readable_name
from learning_at_home.text import printable

JUDGED_OVER_S = 35.0  # calls and failures of an expert: the time that `degraded` must last, and a message
MAX_STRANGER_CLAIMS = 64  # thousands of strangers may each claim thousands of cells
MAX_UNCLAIMED = 256  # experts told of before we saw the announcement that claims them; the others wait a message more
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
        self.claims: dict[CellKey, int] = {}  # cells of the project's grids that it announces -> since when (ms)
        self.denied: set[CellKey] = set()  # of these the ones that it answered not to host
        self.cells: list[CellKey] = []  # the others
        self.telemetry: NodeTelemetry | None = None  # the last one; of its experts those that count, or may soon
        self.num_told = 0  # experts in it as it came
        self.experts: dict[CellKey, ExpertMemory] = {}  # the claimed ones of the last message
        self._parted: dict[CellKey, CounterTrack] = {}  # of its running process, for experts that are told of no more
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
        self.look_budget = TokenBucket(per_second=0.1, burst=5)  # nor has it us crawl the DHT all the time
        self.lacking_until_s = 0.0  # until then we ask the DHT often for what it told us of and did not announce
        self.place = ""  # the address of its telemetry socket

    def is_named(self, name: str, agent: str) -> None:
        """What it calls itself, if that is a name, and its program."""
        self.name = name if is_valid_name(name) else readable_name(self.public_key)
        self.agent = printable(agent)

    def announces(self, announcement: Announcement, record: ProjectRecord) -> None:
        """Take in an announcement: what it claims of this project's grids is walked here, once.

        Of a node that never answered only a few claims are kept: enough to probe it.
        """
        self.announcement = announcement
        claims = (
            ((layer.prefix, cell), claimed_ms)
            for layer in record.layers
            for cell, claimed_ms in claimed_cells(announcement.claims, layer.prefix, layer.cells.num_cells)
        )
        self.claims = dict(claims if self.ever_answered else itertools.islice(claims, MAX_STRANGER_CLAIMS))
        self.denied.clear()
        self.cells = list(self.claims)
        if self.telemetry is not None:
            late = [told for told in self.telemetry.experts if (told.prefix, told.cell) not in self.experts]
            self.totals += self._count(late, self.telemetry.started_s, self.told_s)

    def first_answers(self, record: ProjectRecord) -> None:
        """It is no stranger any more: all that it announces counts."""
        self.ever_answered = True
        if self.announcement is not None:
            self.announces(self.announcement, record)

    def denies(self, cell: CellKey, denied: bool) -> bool:
        """Take in whether it hosts a cell that it claims; whether that is news."""
        if cell not in self.claims or denied == (cell in self.denied):
            return False
        (self.denied.add if denied else self.denied.discard)(cell)
        self.cells = [each for each in self.claims if each not in self.denied]
        return True

    @property
    def process(self) -> tuple[float, Counters] | None:
        """The start of its running process, and what of its counters is in the totals."""
        if self.telemetry is None or self.restored is not None:
            return self.restored
        counted = Counters()
        for expert in self.experts.values():
            counted += expert.track.last
        return self.telemetry.started_s, counted

    def hears(self, message: NodeTelemetry, now: float) -> Counters:
        """Take in telemetry; the answer is what was done lately, to be counted in this minute.

        What a long silence brings counts in the totals only. Experts that the node does not announce are ignored.
        """
        claimed = [told for told in message.experts if (told.prefix, told.cell) in self.claims]
        self._part({(told.prefix, told.cell) for told in claimed})
        if self.telemetry is not None and self.telemetry.started_s != message.started_s:
            self._parted.clear()
        added = self._count(claimed, message.started_s, now)
        span_s = now - max(self.told_s, message.started_s)  # in which this work was done
        self.totals += added
        self.window.add(added, now)
        if span_s <= CATCH_UP_S:
            self.rollups.at(now).count(added)
        self.num_told = len(message.experts)
        if self.num_told > len(claimed):
            others = (told for told in message.experts if (told.prefix, told.cell) not in self.claims)
            kept = (*claimed, *(told for told, _ in zip(others, range(MAX_UNCLAIMED), strict=False)))
            message = msgspec.structs.replace(message, experts=kept)
        self.telemetry = message
        self.evidence.heard_s = self.last_seen_s = self.told_s = now
        self.evidence.said = message.state
        self.unsaved = True
        return added if span_s <= CATCH_UP_S else NOTHING_DONE

    def _part(self, stay: set[CellKey]) -> None:
        """Forget experts that are told of no more, but for what of them was counted: they may come back."""
        for key in [each for each in self.experts if each not in stay]:
            self._parted[key] = self.experts.pop(key).track
        while len(self._parted) > MAX_CLAIMED_CELLS:
            del self._parted[next(iter(self._parted))]

    def _count(self, experts: Iterable[ExpertTelemetry], started_s: float, now: float) -> Counters:
        """What these did since they were last told of. Ignores those that are not claimed."""
        added = NOTHING_DONE
        for told in experts:
            key = (told.prefix, told.cell)
            if key not in self.claims:
                continue
            expert = self.experts.get(key)
            if expert is None:
                expert = self.experts[key] = ExpertMemory(track=self._parted.pop(key, CounterTrack()))
            increment = expert.track.advance(started_s, counters_of(told))
            expert.window.add(increment, now, JUDGED_OVER_S)
            expert.told, expert.heard_s = told, now
            rows_per_s = expert.window.per_second(now).rows
            expert.rows_per_s = three_digits(rows_per_s) if rows_per_s else 0.0
            if increment is not NOTHING_DONE:
                added += increment
        if self.restored is not None and self.experts:
            if self.restored[0] == started_s:
                added = added.since(self.restored[1])
            self.restored = None
        return added.capped()

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
