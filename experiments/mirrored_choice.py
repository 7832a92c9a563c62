"""How long a trainer with a live mirror takes to choose: real time of the real code, no network in it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from experiments.simulated_searches import PREFIX, Scene, best_cells_of
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.living import LivingExperts
from learning_at_home.client.selection import best_cells
from learning_at_home.client.stats import CallStats
from learning_at_home.client.tracing import Tracing
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import Mirrored
from learning_at_home.dht.records import sign_record
from learning_at_home.directory.announcement import node_key
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.mirror import Mirror
from learning_at_home.identity import Identity
from learning_at_home.transport.connections import Connections

RECORDS_PER_MESSAGE = 128  # of a snapshot, as a coordinator sends it
LIFE_MS = 3_600_000  # so that none runs out while the snapshot is taken in, which is timed
CHOICES = 200


@dataclass(frozen=True, slots=True)
class MirroredChoice:
    """Medians. `changed_seconds`: of the first choice after a change of who lives, which makes the index anew."""

    seconds: float
    changed_seconds: float
    snapshot_seconds: float  # to verify and take in what the coordinator knows, once per connection
    right: bool


def choose(scene: Scene) -> MirroredChoice:
    """The best of all hosts' experts for the scene's rows, by a mirror that was told of all of them."""
    torch.manual_seed(scene.seed)
    clock = SystemClock()
    directory = Directory(scene.project, clock)
    records = _records(scene)
    began_s = time.perf_counter()
    mirror = Mirror(directory, clock)
    mirror.opened(Identity.generate().public_key)
    for number, first in enumerate(range(0, len(records), RECORDS_PER_MESSAGE)):
        batch = tuple(records[first : first + RECORDS_PER_MESSAGE])
        mirror.heard(Mirrored(number, first + len(batch) == len(records), 0.0, batch))
    snapshot_s = time.perf_counter() - began_s
    assert mirror.is_live(clock.monotonic_s()), "the snapshot is not whole"

    connections = Connections(Identity.generate(), clock)
    layer = scene.project.layer(PREFIX)
    living = LivingExperts(
        CallContext(scene.project.id, connections, directory, CallStats(), clock, Tracing(clock)), layer
    )
    try:
        kept: list[float] = []
        changed: list[float] = []
        right = True
        for number in range(CHOICES):
            lines = torch.randn(scene.rows, 2 * scene.side)
            if number % 10 == 0:
                living._indexed = None
            began_s = time.perf_counter()
            chosen = best_cells(lines, living.now()[1], scene.k_best)
            (changed if number % 10 == 0 else kept).append(time.perf_counter() - began_s)
            best = [best_cells_of(row, scene.cells, scene.side, scene.k_best) for row in lines.tolist()]
            right = right and chosen.tolist() == best
    finally:
        connections.close()
    return MirroredChoice(statistics.median(kept), statistics.median(changed), snapshot_s, right)


def _records(scene: Scene) -> list[bytes]:
    """Every host's announcement, signed, as a coordinator passes it on."""
    now_ms = int(time.time() * 1000)
    records = []
    for number, cell in enumerate(scene.cells):
        host = Identity((number + 1).to_bytes(32, "big"))
        key = node_key(scene.project.id, host.public_key)
        announcement = scene.announcement(cell).to_bytes()
        record = sign_record(host, key, announcement, sequence=now_ms, expires_ms=now_ms + LIFE_MS)
        records.append(record.to_bytes())
    return records
