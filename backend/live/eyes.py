"""What the coordinator asks of the outside to watch a swarm: a look into the directory, and probes.

Implemented by dht_eyes.DhtEyes; tests have one that needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.live.swarm import SeenAnnouncement
from learning_at_home.dht.records import Record
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec, ProjectRecord


@dataclass(frozen=True, slots=True)
class Probe:
    """One row of zeros for one expert."""

    peer: PeerAddress
    project_id: str
    layer: LayerSpec
    cell: int
    timeout_s: float
    urgent: bool  # its socket dropped or fell silent: a person waits for the verdict
    finished: Callable[[bool, bool], None]  # answered, hosts_it; called on the event loop, exactly once


class Eyes(Protocol):
    """Async; `run_probes` returns when all are finished."""

    @property
    def dht_port(self) -> int: ...

    async def look(self, record: ProjectRecord) -> list[SeenAnnouncement]:
        """Ask the DHT who serves the project's layers. Raises LearningAtHomeError when that cannot be known."""
        ...

    def records(self, project_id: str) -> Sequence[Record]:
        """What the last look found: every node's newest record, also those by which nodes withdrew."""
        ...

    async def publish(self, record: ProjectRecord) -> int:
        """How many peers hold the project record now. Raises LearningAtHomeError when none does."""
        ...

    async def run_probes(self, probes: Sequence[Probe]) -> None: ...
