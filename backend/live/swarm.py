"""The state of one project's swarm in memory: evidence comes in, health and events come out. Pure; `now` is UTC
seconds.

Fed by the telemetry sockets, the directory and the prober; `advance` is called a few times per second and decides
what all that means. Who is shown what is portrait.py's; what is written where is recorder.py's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from backend.live.admission import MAX_NODES, MAX_STRANGERS, count_strangers, is_forgettable, make_room
from backend.live.curves import RecentChart
from backend.live.events import EventBudgets, EventWriter
from backend.live.health import FAILURES_THAT_DECIDE, expert_health, is_slow_or_failing, median_p95_ms, node_health
from backend.live.hosts import choose_hosts
from backend.live.node_memory import CellKey, NodeMemory
from backend.live.rates import Counters
from backend.live.reachability import worth_calling
from backend.live.rollups import RollupBook
from backend.live.run_book import RunBook
from backend.live.run_memory import TrainerMemory
from dashboard.view import HEALTHS, ChartName, Event, ExpertHealth, NodeHealth
from learning_at_home.coordinator_messages import Hardware, NodeTelemetry, Report, TrainerTelemetry
from learning_at_home.directory.announcement import Announcement
from learning_at_home.directory.coordinator_suspicion import SUSPICION_LIFE_S
from learning_at_home.errors import NodeOverloaded
from learning_at_home.project import ProjectRecord

EVENTS_SHOWN = 50
MAX_STRANGERS_PROBED = 64  # at once: whoever never answered must not keep the others waiting
LACKING_FOR_S = 30.0  # so long we ask the DHT often for what a node that talks to us has not announced
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
    endpoints: tuple[str, ...]
    timeout_s: float


@dataclass(slots=True)
class ProjectSwarm:
    """Everything known of one project's swarm."""

    record: ProjectRecord
    next_event_id: Callable[[], int]
    own_address: str = ""  # at which peers reach this coordinator, if it is a number
    nodes: dict[str, NodeMemory] = field(default_factory=dict)
    book: RunBook = field(default_factory=RunBook)
    cells: dict[CellKey, CellMemory] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))
    unsaved_events: list[Event] = field(default_factory=list)
    event_budgets: EventBudgets = field(default_factory=dict)
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
        return EventWriter(self.record, self.next_event_id, self.events, self.unsaved_events, self.event_budgets)

    @property
    def answered(self) -> list[NodeMemory]:
        """The nodes that ever answered a probe; what the others say counts for nothing."""
        return [node for node in self.nodes.values() if node.ever_answered]

    # -- what comes in

    def node_introduced(
        self, public_key: bytes, name: str, agent: str, hardware: Hardware, now: float, place: str = ""
    ) -> NodeMemory:
        """A node opened its telemetry socket, from the address `place`. Raises NodeOverloaded when all who are known
        are here.
        """
        node = self.nodes.get(public_key.hex())
        if node is None:
            if not make_room(self.nodes):
                raise NodeOverloaded(f"project {self.record.id} watches as many nodes as it can", retry_after_s=60.0)
            node = self.nodes[public_key.hex()] = NodeMemory(public_key, now)
        node.is_named(name, agent)
        node.hardware, node.last_seen_s, node.place = hardware, now, place
        node.evidence.socket_open, node.evidence.heard_s = True, now
        node.unsaved = self.dirty = True
        self._ask_directory(node, now)
        return node

    def node_told(self, node: NodeMemory, message: NodeTelemetry, now: float) -> None:
        """Telemetry of a node; what it says is kept, what it claims is probed."""
        before, num_told = node.telemetry, node.num_told
        added = node.hears(message, now)
        if node.ever_answered:
            self.rollups.at(now).count(added)
        # One that said goodbye may connect once more on its way out: it is back when it says more than `draining`.
        node.evidence.withdrawn = message.state == "offline" or (
            message.state == "draining" and node.evidence.withdrawn
        )
        news = before is None or before.state != message.state or num_told != len(message.experts)
        if news:  # one that leaves has a last record in the DHT, or soon will
            self._ask_directory(node, now)
        if node.evidence.failures:
            node.schedule.hurry(now)  # it lives; whether it answers is asked soon
        if node.announcement is not None:
            node.schedule.calm(now)
        if message.notice and node.ever_answered and (before is None or before.notice != message.notice):
            self.teller.notice(node, message.notice, now)
        self.dirty = True

    def node_socket_lost(self, node: NodeMemory, now: float, *, in_order: bool = False) -> None:
        """The telemetry socket closed: probe at once. One that closed in order after `draining` is a goodbye."""
        node.evidence.socket_open = False
        if in_order and node.evidence.said == "draining":
            node.evidence.withdrawn = True
        if is_forgettable(node, now):
            self.nodes.pop(node.id, None)
            return
        self._ask_directory(node, now)
        if node.announcement is not None and not node.evidence.withdrawn and node.state != "offline":
            node.schedule.alarm(now)
        self.dirty = True

    def trainer_introduced(self, public_key: bytes, name: str, now: float) -> TrainerMemory:
        """A trainer opened its socket. Raises NodeOverloaded."""
        self.dirty = True
        return self.book.introduced(public_key, name, now)

    def trainer_told(self, trainer: TrainerMemory, message: TrainerTelemetry, now: float) -> None:
        trainer.hears(message, now)
        self.dirty = True

    def trainer_reported(self, trainer: TrainerMemory, report: Report, now: float) -> None:
        """A training's progress. A run that is new is an event."""
        if (new := self.book.reported(trainer, report, now)) is not None:
            self.teller.run_started(new, trainer, now)
        self.dirty = True

    def trainer_socket_lost(self, trainer: TrainerMemory, now: float) -> None:
        self.book.lost(trainer, now)
        self.dirty = True

    def directory_seen(self, seen: Iterable[SeenAnnouncement], now: float) -> None:
        """All announcements that have not expired; one that vanished before its end was withdrawn."""
        present = set()
        room = min(MAX_NODES - len(self.nodes), MAX_STRANGERS - count_strangers(self.nodes.values()))
        for each in seen:
            present.add(each.public_key.hex())
            node = self.nodes.get(each.public_key.hex())
            if node is None and room > 0:
                room -= 1
                node = self.nodes[each.public_key.hex()] = NodeMemory(each.public_key, now)
            if node is not None:
                self._announced(node, each, now)
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
            evidence.answered_s, evidence.failures, node.unsaved = now, 0, True
            node.last_seen_s = now
            if not node.ever_answered:
                node.first_answers(self.record)
                self.rehost = True
            self.rehost |= node.denies(cell, not hosts_it)
        else:
            evidence.failures += 1
            evidence.failed_s = now
        node.schedule.finish(now, answered=answered, failures=evidence.failures, jitter=jitter)
        self.dirty = True

    def probe_abandoned(self, node: NodeMemory, now: float) -> None:
        """A probe ended by a fault of ours: nothing was learned."""
        node.schedule.abandon(now)

    def restore_node(self, node: NodeMemory, now: float) -> None:
        """A node of the database: offline as it was, or believed while its announcement may live, and probed now."""
        self.nodes[node.id] = node
        node.ever_answered = True
        if node.announcement is not None:
            node.announces(node.announcement, self.record)
        if node.announcement is not None and node.state != "offline":
            node.evidence.expires_s = now + RESTORED_LIFE_S
            node.evidence.announced_s = None
            node.evidence.answered_s = node.told_s = node.last_seen_s
            node.evidence.failures = 1  # stale until it answers
            node.schedule.hurry(now)
        elif node.state == "offline":
            node.evidence.failures, node.evidence.failed_s = FAILURES_THAT_DECIDE, node.since_s
        for key in node.cells:
            self.cells.setdefault(key, CellMemory(node, "orphaned" if node.state == "offline" else "stale"))
        self.rehost = self.dirty = True

    # -- what follows from it

    def due_probes(self, now: float, choose: Callable[[list[CellKey]], CellKey]) -> list[ProbeTarget]:
        """The probes to make now; each is started, and `probed` must be told how it ended."""
        targets = []
        strangers = sum(node.schedule.in_flight and not node.ever_answered for node in self.nodes.values())
        for node in self.nodes.values():
            if node.is_silent(now) and node.announcement is not None and node.state != "offline":
                node.schedule.alarm(now)
            if not node.schedule.is_due(now) or (strangers >= MAX_STRANGERS_PROBED and not node.ever_answered):
                continue
            met_at = (self.own_address, node.place)
            endpoints = worth_calling(node.announcement.endpoints, met_at) if node.announcement is not None else ()
            if not endpoints or not node.claims:
                node.schedule.next_s = None
                continue
            strangers += not node.ever_answered
            cell = choose(node.cells or list(node.claims))
            targets.append(ProbeTarget(node, cell, endpoints, node.schedule.start(now)))
        return sorted(targets, key=lambda target: not target.node.ever_answered)

    def advance(self, now: float) -> None:
        """Decide every state anew, and tell what changed."""
        self.dirty = False
        for node in list(self.nodes.values()):
            node.spend_time(now)
            self._set_node_state(node, node_health(node.evidence, now), now)
            if is_forgettable(node, now):
                del self.nodes[node.id]
        if self.rehost:
            self._choose_hosts()
        self._judge_cells(now)
        self.book.advance(now)

    # -- figures

    def lacks_announcements(self, now: float) -> bool:
        """Whether a node talks to us that the DHT did not tell us of yet, or not of all its experts."""
        for node in self.nodes.values():
            evidence = node.evidence
            announced = evidence.expires_s is not None and evidence.announced_s is not None
            waits = evidence.socket_open and not evidence.withdrawn and now < node.lacking_until_s
            if waits and node.num_told > (len(node.cells) if announced else 0):
                return True
        return False

    def vanished(self, now: float) -> dict[bytes, float]:
        """Nodes that do not answer and may still be believed to serve, by public key, and when they last did not."""
        return {
            node.public_key: node.evidence.failed_s
            for node in self.nodes.values()
            if node.evidence.failures >= FAILURES_THAT_DECIDE
            and now < max(node.evidence.expires_s or 0.0, node.evidence.failed_s + SUSPICION_LIFE_S)
        }

    @property
    def experts_total(self) -> int:
        return sum(layer.cells.num_cells for layer in self.record.layers)

    @property
    def nodes_online(self) -> int:
        return sum(node.state in ("online", "degraded") for node in self.nodes.values())

    @property
    def trainers_online(self) -> int:
        return sum(trainer.connected for trainer in self.book.trainers.values())

    @property
    def totals(self) -> Counters:
        total = Counters()
        for node in self.answered:
            total += node.totals
        return total

    def health_counts(self) -> dict[ExpertHealth, int]:
        """How many cells are in which state; vacant ones are not counted."""
        return Counter(cell.health for cell in self.cells.values() if cell.health != "vacant")

    # -- private, in order of use

    def _ask_directory(self, node: NodeMemory, now: float) -> None:
        """What a node says makes it likely that the DHT has news of it."""
        if node.look_budget.take(now):
            node.lacking_until_s = now + LACKING_FOR_S
            self.wants_directory = True

    def _announced(self, node: NodeMemory, seen: SeenAnnouncement, now: float) -> None:
        known, news, evidence = node.announcement, seen.announcement, node.evidence
        evidence.expires_s = seen.expires_s
        if known == news and evidence.announced_s is not None:
            return
        evidence.announced_s = min(news.issued_ms / 1000, now)
        evidence.announced_state = news.state
        if not evidence.socket_open:
            evidence.withdrawn = False
            node.is_named(news.name, news.agent)
        node.unsaved = self.dirty = True
        if known is None or known.claims != news.claims or known.endpoints != news.endpoints:
            node.announces(news, self.record)
            self.rehost = True
            node.schedule.hurry(now)
        else:
            node.announcement = news
            if evidence.failures or evidence.answered_s is None:
                node.schedule.hurry(now)

    def _set_node_state(self, node: NodeMemory, state: NodeHealth, now: float) -> None:
        if state == "online" and node.state == "degraded":
            return  # _judge_cells decides when it is well again
        if state == node.state:
            return
        before, node.state, node.since_s = node.state, state, now
        node.unsaved = self.rehost = True
        if state == "online" and before in ("joining", "offline"):
            self.teller.joined(node, node.cells, now)
        elif state == "offline" and before != "joining":
            self.teller.left(node, now)

    def _choose_hosts(self) -> None:
        self.rehost = False
        hosts = choose_hosts(self.nodes.values())
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
        hosts: dict[str, NodeMemory] = {}  # also those that were forgotten since
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
                cell.health, hosts[cell.host.id] = health, cell.host
            if health == "degraded":
                troubled.add(cell.host.id)
        for node in self.nodes.values():
            if node.state in ("online", "degraded") and (node.id in troubled) != (node.state == "degraded"):
                node.state, node.since_s = ("degraded" if node.id in troubled else "online"), now
        for (node_id, before, after), keys in changed.items():
            self.teller.cells_changed(hosts[node_id], before, after, keys, now)

    def _medians(self, now: float) -> dict[str, float | None]:
        by_layer: dict[str, list[float | None]] = {layer.prefix: [] for layer in self.record.layers}
        for key, cell in self.cells.items():
            expert = cell.host.experts.get(key)
            if expert is not None and expert.told is not None and now - expert.heard_s < LATENCY_IS_NEWS_S:
                by_layer[key[0]].append(expert.told.p95_ms)
        return {prefix: median_p95_ms(values) for prefix, values in by_layer.items()}
