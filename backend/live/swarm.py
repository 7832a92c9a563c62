"""The state of one project's swarm in memory: evidence comes in, health and events come out. Pure; `now` is UTC
seconds.

Fed by the telemetry sockets, the directory and the prober; `advance` is called a few times per second and decides
what all that means. Who is shown what is portrait.py's; what is written where is recorder.py's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from backend.live.curves import RecentChart
from backend.live.events import EventWriter
from backend.live.health import expert_health, is_slow_or_failing, median_p95_ms, node_health
from backend.live.hosts import choose_hosts, claims_in
from backend.live.node_memory import CellKey, NodeMemory
from backend.live.rates import Counters
from backend.live.rollups import RollupBook
from backend.live.run_memory import MAX_RUNS, TRAINER_FORGOTTEN_S, RunMemory, TrainerMemory
from dashboard.view import HEALTHS, ChartName, Event, ExpertHealth, NodeHealth
from learning_at_home.coordinator_messages import Hardware, NodeTelemetry, Report, TrainerTelemetry
from learning_at_home.directory.announcement import Announcement
from learning_at_home.errors import NodeOverloaded
from learning_at_home.project import ProjectRecord

EVENTS_SHOWN = 50
MAX_NODES = 20_000  # in memory, per project; a stranger can make keys faster than anyone can host
NODE_FORGOTTEN_S = 600.0  # for one that never answered a probe
LATENCY_IS_NEWS_S = 60.0
RESTORED_LIFE_S = 30.0  # after our restart a node's last announcement counts until its next one must have come


@dataclass(frozen=True, slots=True)
class SeenAnnouncement:
    """One node's announcement as the directory has it now."""

    public_key: bytes
    announcement: Announcement
    expires_s: float


@dataclass(slots=True)
class CellMemory:
    """One cell that is or was hosted."""

    host: NodeMemory
    health: ExpertHealth = "vacant"
    released: bool = False  # its last host claims it no more, and nobody else does


@dataclass(slots=True)
class ProbeTarget:
    """An expert to ask, and of whom."""

    node: NodeMemory
    cell: CellKey
    timeout_s: float


@dataclass(slots=True)
class ProjectSwarm:
    """Everything known of one project's swarm."""

    record: ProjectRecord
    next_event_id: Callable[[], int]
    nodes: dict[str, NodeMemory] = field(default_factory=dict)
    trainers: dict[str, TrainerMemory] = field(default_factory=dict)
    runs: dict[tuple[str, str], RunMemory] = field(default_factory=dict)
    cells: dict[CellKey, CellMemory] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))
    unsaved_events: list[Event] = field(default_factory=list)
    rollups: RollupBook = field(default_factory=lambda: RollupBook(10))
    charts: dict[ChartName, RecentChart] = field(
        default_factory=lambda: {
            "throughput": RecentChart(("forward", "backward"), "rows/s"),
            "latency": RecentChart(("p50", "p95"), "ms"),
            "experts": RecentChart(HEALTHS[:-1], "experts"),
        }
    )
    dirty: bool = True  # something came in since the last advance
    rehost: bool = True  # who hosts what must be decided again
    wants_directory: bool = True  # a node is up whose announcement we lack: ask the DHT at once

    @property
    def teller(self) -> EventWriter:
        return EventWriter(self.record, self.next_event_id, self.events, self.unsaved_events)

    # -- what comes in

    def node_introduced(self, public_key: bytes, name: str, agent: str, hardware: Hardware, now: float) -> NodeMemory:
        """A node opened its telemetry socket. Raises NodeOverloaded when more nodes than can be watched are known."""
        node = self._node(public_key, now)
        node.is_named(name)
        node.agent, node.hardware, node.last_seen_s = agent, hardware, now
        node.evidence.socket_open, node.evidence.heard_s = True, now
        node.unsaved = self.dirty = self.wants_directory = True
        return node

    def node_told(self, node: NodeMemory, message: NodeTelemetry, now: float) -> None:
        """Telemetry of a node; what it says is kept, what it claims is probed."""
        before = node.telemetry
        added = node.hears(message, self.record, now)
        self.rollups.at(now).count(added)
        # One that said goodbye may connect once more on its way out: it is back when it says more than `draining`.
        node.evidence.withdrawn = message.state == "offline" or (
            message.state == "draining" and node.evidence.withdrawn
        )
        news = before is None or before.state != message.state or len(before.experts) != len(message.experts)
        if news and message.state != "offline":
            self.wants_directory = True
        if node.evidence.failures:
            node.schedule.hurry(now)  # it lives; whether it answers is asked at once
        if node.announcement is not None:
            node.schedule.calm(now)
        if message.notice and (before is None or before.notice != message.notice):
            self.teller.notice(node, message.notice, now)
        self.dirty = True

    def node_socket_lost(self, node: NodeMemory, now: float, *, in_order: bool = False) -> None:
        """The telemetry socket closed: probe at once. One that closed in order after `draining` is a goodbye."""
        node.evidence.socket_open = False
        if in_order and node.evidence.said == "draining":
            node.evidence.withdrawn = True
        self.wants_directory = True
        if node.announcement is not None and not node.evidence.withdrawn and node.state != "offline":
            node.schedule.alarm(now)
        self.dirty = True

    def trainer_introduced(self, public_key: bytes, name: str, now: float) -> TrainerMemory:
        trainer = TrainerMemory.introduced(public_key, name, now)
        if trainer.id not in self.trainers and len(self.trainers) >= MAX_NODES:
            raise NodeOverloaded(f"project {self.record.id} watches {MAX_NODES:,} trainers and takes no more")
        self.trainers[trainer.id] = trainer
        self.dirty = True
        return trainer

    def trainer_told(self, trainer: TrainerMemory, message: TrainerTelemetry, now: float) -> None:
        trainer.hears(message, now)
        self.dirty = True

    def trainer_reported(self, trainer: TrainerMemory, report: Report, now: float) -> None:
        """A training's progress. A run that is new is an event."""
        key = (trainer.id, report.run)
        run = self.runs.get(key)
        if run is None:
            run = self.runs[key] = RunMemory(trainer.id, trainer.name, report.run, started_s=now, last_heard_s=now)
            self.teller.run_started(run, now)
            if len(self.runs) > MAX_RUNS:
                del self.runs[min(self.runs, key=lambda each: self.runs[each].last_heard_s)]
        run.hears(report, now)
        run.live = True
        trainer.heard_s = now
        self.dirty = True

    def trainer_socket_lost(self, trainer: TrainerMemory, now: float) -> None:
        trainer.connected, trainer.heard_s = False, now
        for run in self.runs.values():
            if run.trainer_id == trainer.id:
                run.live = False
        self.dirty = True

    def directory_seen(self, seen: Iterable[SeenAnnouncement], now: float) -> None:
        """All announcements that have not expired; one that vanished before its end was withdrawn."""
        present = set()
        for each in seen:
            present.add(each.public_key.hex())
            self._announced(each, now)
        for node in self.nodes.values():
            evidence = node.evidence
            if node.id not in present and evidence.expires_s is not None and evidence.announced_s is not None:
                evidence.expires_s = min(evidence.expires_s, now)
                evidence.announced_s = None
                self.dirty = True

    def probed(
        self, node: NodeMemory, cell: CellKey, now: float, *, answered: bool, hosts_it: bool, jitter: float
    ) -> None:
        """A probe is over: no answer at all, an answer, or the answer that it does not host this expert."""
        evidence = node.evidence
        if answered:
            evidence.answered_s, evidence.failures, node.ever_answered, node.unsaved = now, 0, True, True
            node.last_seen_s = now
            if hosts_it == (cell in node.denied):
                (node.denied.discard if hosts_it else node.denied.add)(cell)
                self.rehost = True
        else:
            evidence.failures += 1
        node.schedule.finish(now, answered=answered, failures=evidence.failures, jitter=jitter)
        self.dirty = True

    def record_changed(self, record: ProjectRecord) -> None:
        """The owner wrote the record anew; cells of layers that are gone are forgotten."""
        self.record = record
        sizes = {layer.prefix: layer.cells.num_cells for layer in record.layers}
        self.cells = {key: cell for key, cell in self.cells.items() if key[1] < sizes.get(key[0], 0)}
        self.dirty = self.rehost = True

    def restore_node(self, node: NodeMemory, now: float) -> None:
        """A node that the database knows: believed for as long as its announcement would be, and probed at once."""
        self.nodes[node.id] = node
        node.ever_answered = True
        if node.announcement is not None and node.state != "offline":
            node.evidence.expires_s = now + RESTORED_LIFE_S
            node.evidence.announced_s = None
            node.evidence.answered_s = node.told_s = node.last_seen_s
            node.evidence.failures = 1  # stale until it answers
            node.schedule.hurry(now)
        for key in self._claims(node):
            self.cells.setdefault(key, CellMemory(node, "orphaned" if node.state == "offline" else "stale"))
        self.rehost = self.dirty = True

    # -- what follows from it

    def due_probes(self, now: float, choose: Callable[[list[CellKey]], CellKey]) -> list[ProbeTarget]:
        """The probes to make now; each is started, and `probed` must be told how it ended."""
        targets = []
        for node in self.nodes.values():
            if node.is_silent(now) and node.announcement is not None and node.state != "offline":
                node.schedule.alarm(now)
            if not node.schedule.is_due(now):
                continue
            claims = self._claims(node)
            if node.announcement is None or not node.announcement.endpoints or not claims:
                node.schedule.next_s = None
                continue
            targets.append(ProbeTarget(node, choose(claims), node.schedule.start(now)))
        return targets

    def advance(self, now: float) -> None:
        """Decide every state anew, and tell what changed."""
        self.dirty = False
        for node in list(self.nodes.values()):
            node.spend_time(now)
            self._set_node_state(node, node_health(node.evidence, now), now)
            if not node.ever_answered and node.state in ("offline", "joining") and self._is_forgettable(node, now):
                del self.nodes[node.id]
        if self.rehost:
            self._choose_hosts()
        self._judge_cells(now)
        for trainer in list(self.trainers.values()):
            if not trainer.connected and now - trainer.heard_s > TRAINER_FORGOTTEN_S:
                del self.trainers[trainer.id]

    # -- figures

    @property
    def lacks_announcements(self) -> bool:
        """Whether a node talks to us that the DHT did not tell us of yet, or not of all its experts."""
        for node in self.nodes.values():
            if node.evidence.socket_open and not node.evidence.withdrawn and node.telemetry is not None:
                expired = node.evidence.expires_s is None or node.evidence.announced_s is None
                if (expired or len(self._claims(node)) < len(node.telemetry.experts)) and node.telemetry.experts:
                    return True
        return False

    @property
    def experts_total(self) -> int:
        return sum(layer.cells.num_cells for layer in self.record.layers)

    @property
    def nodes_online(self) -> int:
        return sum(node.state in ("online", "degraded") for node in self.nodes.values())

    @property
    def trainers_online(self) -> int:
        return sum(trainer.connected for trainer in self.trainers.values())

    @property
    def totals(self) -> Counters:
        total = Counters()
        for node in self.nodes.values():
            total += node.totals
        return total

    def health_counts(self) -> dict[ExpertHealth, int]:
        """How many cells are in which state; vacant ones are not counted."""
        return Counter(cell.health for cell in self.cells.values() if cell.health != "vacant")

    def latest_run(self) -> RunMemory | None:
        """The live run that was heard last, else the last one."""
        return max(self.runs.values(), key=lambda run: (run.live, run.last_heard_s), default=None)

    # -- private, in order of use

    def _node(self, public_key: bytes, now: float) -> NodeMemory:
        node = self.nodes.get(public_key.hex())
        if node is None:
            if len(self.nodes) >= MAX_NODES:
                raise NodeOverloaded(f"project {self.record.id} watches {MAX_NODES:,} nodes and takes no more")
            node = self.nodes[public_key.hex()] = NodeMemory(public_key, now)
        return node

    def _announced(self, seen: SeenAnnouncement, now: float) -> None:
        if seen.public_key.hex() not in self.nodes and len(self.nodes) >= MAX_NODES:
            return
        node = self._node(seen.public_key, now)
        known = node.announcement
        issued_s = seen.announcement.issued_ms / 1000
        evidence = node.evidence
        evidence.expires_s = seen.expires_s
        if known == seen.announcement and evidence.announced_s is not None:
            return
        evidence.announced_s = min(issued_s, now)
        evidence.announced_state = seen.announcement.state
        if not evidence.socket_open:
            evidence.withdrawn = False
            node.is_named(seen.announcement.name)
            node.agent = seen.announcement.agent
        node.announcement, node.unsaved, self.dirty = seen.announcement, True, True
        if known is None or known.claims != seen.announcement.claims or known.endpoints != seen.announcement.endpoints:
            node.denied.clear()
            self.rehost = True
            node.schedule.hurry(now)
        elif evidence.failures or evidence.answered_s is None:
            node.schedule.hurry(now)

    def _claims(self, node: NodeMemory) -> list[CellKey]:
        """Cells of this project's grids that a node announced, at most as many as there are."""
        return [key for key, _ in claims_in(node, self.record)]

    def _is_forgettable(self, node: NodeMemory, now: float) -> bool:
        return not node.evidence.socket_open and now - node.last_seen_s > NODE_FORGOTTEN_S and not node.hosted

    def _set_node_state(self, node: NodeMemory, state: NodeHealth, now: float) -> None:
        if state == "online" and node.state == "degraded":
            return  # _judge_cells decides when it is well again
        if state == node.state:
            return
        before, node.state, node.since_s = node.state, state, now
        node.unsaved = self.rehost = True
        if state == "online" and before in ("joining", "offline"):
            self.teller.joined(node, self._claims(node), now)
        elif state == "offline" and before != "joining":
            self.teller.left(node, now)

    def _choose_hosts(self) -> None:
        self.rehost = False
        hosts = choose_hosts(self.nodes.values(), self.record)
        for node in self.nodes.values():
            node.hosted.clear()
        for key, cell in self.cells.items():
            cell.released = key not in hosts
        for key, node in hosts.items():
            cell = self.cells.setdefault(key, CellMemory(node))
            cell.host = node
        for key, cell in self.cells.items():
            cell.host.hosted.add(key)

    def _judge_cells(self, now: float) -> None:
        medians = self._medians(now)
        changed: dict[tuple[str, ExpertHealth, ExpertHealth], list[CellKey]] = {}
        troubled: set[str] = set()
        for key, cell in self.cells.items():
            expert = cell.host.experts.get(key)
            degraded = False
            if expert is not None and expert.told is not None:
                lately = expert.window.over_window()
                p95_ms = expert.told.p95_ms if now - expert.heard_s < LATENCY_IS_NEWS_S else None
                bad = is_slow_or_failing(p95_ms, medians.get(key[0]), lately.calls, lately.failures)
                degraded = expert.watch.update(bad, now)
            health = expert_health(
                cell.host.state,
                hosted_before=cell.health != "vacant",
                record_expired=cell.released or now >= (cell.host.evidence.expires_s or 0),
                degraded=degraded,
            )
            if health != cell.health:
                changed.setdefault((cell.host.id, cell.health, health), []).append(key)
                cell.health = health
            if health == "degraded":
                troubled.add(cell.host.id)
        for node in self.nodes.values():
            if node.state in ("online", "degraded") and (node.id in troubled) != (node.state == "degraded"):
                node.state, node.since_s = ("degraded" if node.id in troubled else "online"), now
        for (node_id, before, after), keys in changed.items():
            self.teller.cells_changed(self.nodes[node_id], before, after, keys, now)

    def _medians(self, now: float) -> dict[str, float | None]:
        by_layer: dict[str, list[float | None]] = {layer.prefix: [] for layer in self.record.layers}
        for key, cell in self.cells.items():
            expert = cell.host.experts.get(key)
            if expert is not None and expert.told is not None and now - expert.heard_s < LATENCY_IS_NEWS_S:
                by_layer[key[0]].append(expert.told.p95_ms)
        return {prefix: median_p95_ms(values) for prefix, values in by_layer.items()}
