"""The live mirror, a trainer's side: what the coordinator pushes, checked and put into the directory. Pure but for the
clock it is given; used on one event loop, except `source`, which any thread may ask.

The coordinator is believed in nothing but its own suspicions: announcements and their ends are records that the nodes
signed, and a suspicion hides a node only until the node announces itself again, answers this process, or the
coordinator takes it back. Policy: docs/decisions/0008-live-mirror.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from learning_at_home.clock import Clock
from learning_at_home.coordinator_messages import MIRROR_HEARTBEAT_S, Mirrored
from learning_at_home.dht.records import Record, Refusal, is_newer
from learning_at_home.directory.coordinator_suspicion import CoordinatorSuspicion, suspicion_key
from learning_at_home.directory.directory import FOREVER, Directory
from learning_at_home.errors import WireError

FRESH_S = 20.0  # older knowledge of the coordinator's (it asks the DHT every 5 s) is worth less than the DHT's
SILENT_AFTER_S = 3 * MIRROR_HEARTBEAT_S
MAX_NODES = 20_000  # as many as a coordinator watches; keys cost a hostile one nothing
MAX_REFUSED = 100  # records of one connection: 9 ms of checking signatures, then the coordinator is left for a while
FOREIGN = "foreign"  # a record of nobody in this project, or a suspicion that is not this coordinator's


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """Where what the directory knows comes from, and how old it is."""

    name: Literal["mirror", "dht"]
    age_s: float  # since the mirror was true, or since the DHT was last asked and answered; infinite: never


@dataclass(frozen=True, slots=True)
class _Word:
    """`node` is empty where a suspicion of which we never heard is taken back."""

    node: bytes
    record: Record


class Mirror:
    """Fed by the link to the coordinator: `opened`, `heard` ..., `lost`, and from the beginning again."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self.refused: Counter[str] = Counter()  # reason -> records; totals
        self.on_suspicion: Callable[[bytes], None] = lambda node: None  # called with its public key
        self._directory = directory
        self._clock = clock
        self._key: bytes | None = None  # the coordinator's, while connected
        self._next_sequence = 0
        self._num_refused = 0  # on this connection
        self._words: dict[bytes, _Word] = {}  # by key: the coordinator's newest on each node, also that it was wrong
        self._restated: set[bytes] = set()  # keys that the snapshot under way spoke of
        self._complete = False
        self._as_of_s = -FOREVER  # what we know was true then
        self._heard_s = -FOREVER

    # -- written on the loop's thread

    def opened(self, coordinator_key: bytes) -> None:
        """A connection: a snapshot begins. What another coordinator suspected is forgotten."""
        self._forget({key for key, word in self._words.items() if word.record.publisher != coordinator_key})
        self._key = coordinator_key
        self._forget_expired()
        self._next_sequence = self._num_refused = 0
        self._restated.clear()
        self._complete = False

    def heard(self, message: Mirrored) -> None:
        """Take a message. Raises WireError when one is missing, or too many records were refused: connect again."""
        if message.sequence != self._next_sequence or self._key is None:
            raise WireError(f"the mirror's message {message.sequence} came where {self._next_sequence} was due")
        self._next_sequence += 1
        of_nodes: list[Record] = []
        for data in message.records:
            if (reason := self._refusal(data, self._key, of_nodes)) is not None:
                self.refused[reason] += 1
                self._num_refused += 1
        self._directory.feed(*of_nodes)
        if self._num_refused > MAX_REFUSED:
            raise WireError(f"the coordinator's mirror holds too many records that are refused: {dict(self.refused)}")
        if not message.complete:
            return
        if not self._complete:
            self._complete = True
            self._forget(self._words.keys() - self._restated)
        self._heard_s = self._clock.monotonic_s()
        self._as_of_s = max(self._as_of_s, self._heard_s - message.age_s)
        self._directory.freshened(self._as_of_s)

    def lost(self) -> None:
        """The connection ended. What is known stays, and the DHT is asked from here on."""
        self._key = None
        self._complete = False

    def _refusal(self, data: bytes, coordinator_key: bytes, of_nodes: list[Record]) -> str | None:
        """Take a record, or say why not; a node's is added to those to be taken together. What is no newer than what is
        known is simply passed over."""
        try:
            record = Record.from_bytes(data)
            if (refusal := self._directory.refusal(record)) is not None:
                return refusal.value
            if self._directory.is_of_node(record):
                num_nodes = self._directory.num_nodes + len(of_nodes)
                if not self._directory.knows(record.publisher) and num_nodes >= MAX_NODES:
                    return Refusal.STORAGE_FULL.value
                of_nodes.append(record)
                return None
            return self._take_suspicion(record, coordinator_key)
        except WireError:
            return Refusal.MALFORMED.value

    def _take_suspicion(self, record: Record, coordinator_key: bytes) -> str | None:
        """Raises WireError when it says nothing."""
        if record.publisher != coordinator_key:
            return FOREIGN
        word = self._words.get(record.key)
        node = word.node if word else b""
        if not record.is_tombstone:
            said = CoordinatorSuspicion.from_record(record)
            node = said.node
            if record.key != suspicion_key(self._directory.project.id, node):
                return FOREIGN
        self._restated.add(record.key)
        if word is not None and not is_newer(record, word.record):
            return None
        if word is None and len(self._words) >= MAX_NODES:
            self._forget_expired()
            if len(self._words) >= MAX_NODES:
                return Refusal.STORAGE_FULL.value
        self._words[record.key] = _Word(node, record)
        if record.is_tombstone:
            self._directory.absolve(node)
        else:
            if self._directory.suspect(node, said.since_ms, record.expires_ms):
                self.on_suspicion(node)
        return None

    def _forget_expired(self) -> None:
        now_ms = self._clock.wall_s() * 1000
        self._forget({key for key, word in self._words.items() if now_ms >= word.record.expires_ms})

    def _forget(self, keys: set[bytes]) -> None:
        for key in keys:
            self._directory.absolve(self._words.pop(key).node)

    # -- any thread

    def is_live(self, now: float) -> bool:
        """Whether the coordinator is connected, has said all it knows, goes on talking, and is not out of date."""
        return self._complete and now - self._heard_s <= SILENT_AFTER_S and now - self._as_of_s <= FRESH_S

    def source(self, now: float) -> DirectorySource:
        """Where the directory's knowledge comes from now."""
        if self.is_live(now):
            return DirectorySource("mirror", max(0.0, now - self._as_of_s))
        ages_s = (self._directory.layer(layer.prefix).age_s(now) for layer in self._directory.project.layers)
        return DirectorySource("dht", max(ages_s, default=FOREVER))
