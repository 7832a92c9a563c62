"""The live mirror: what a trainer believes of what a coordinator pushes, also of one that lies."""

import pytest

from learning_at_home.coordinator_messages import Mirrored
from learning_at_home.dht.records import sign_record
from learning_at_home.directory import mirror as mirror_module
from learning_at_home.directory.announcement import node_key
from learning_at_home.directory.coordinator_suspicion import sign_absolution, sign_suspicion
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.mirror import FRESH_S, MAX_REFUSED, SILENT_AFTER_S, Mirror
from learning_at_home.errors import WireError
from learning_at_home.identity import Identity

COORDINATOR = Identity(b"\7" * 32)
LIAR = Identity(b"\10" * 32)


class Told:
    """A trainer's directory with a mirror, and its coordinator's pen."""

    def __init__(self, swarm, clock) -> None:
        self.directory = Directory(swarm.project, clock)
        self.mirror = Mirror(self.directory, clock)
        self.probed: list[bytes] = []
        self.mirror.on_suspicion = self.probed.append
        self._clock = clock
        self._sequence = 0
        self._records = 0

    def connect(self, coordinator: Identity = COORDINATOR) -> None:
        self.mirror.opened(coordinator.public_key)
        self._sequence = 0

    def hear(self, *records, complete=True, age_s=0.0) -> None:
        encoded = tuple(record if isinstance(record, bytes) else record.to_bytes() for record in records)
        self.mirror.heard(Mirrored(self._sequence, complete, age_s, encoded))
        self._sequence += 1

    def suspicion(self, person: Identity, *, project="digits", by=COORDINATOR, since_s=0.0):
        now_ms = int(self._clock.wall_s() * 1000)
        self._records += 1
        since_ms = now_ms + int(since_s * 1000)
        return sign_suspicion(by, project, person.public_key, since_ms, sequence=now_ms + self._records)

    def absolution(self, suspicion, *, by=COORDINATOR):
        return sign_absolution(by, suspicion, int(self._clock.wall_s() * 1000))

    def alive(self) -> int:
        return self.directory.layer("ffn0").num_alive

    def is_live(self) -> bool:
        return self.mirror.is_live(self._clock.monotonic_s())

    def source(self):
        return self.mirror.source(self._clock.monotonic_s())


@pytest.fixture
def told(swarm, clock) -> Told:
    return Told(swarm, clock)


def test_it_is_live_once_all_was_said_and_knows_its_age(told, swarm, clock):
    assert told.source().name == "dht"
    assert told.source().age_s == float("inf")
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}), complete=False)
    assert (told.alive(), told.is_live()) == (1, False)
    told.hear(swarm.record(swarm.bob, {1, 2}), age_s=3.0)
    assert (told.alive(), told.is_live()) == (3, True)
    clock.advance(1.5)
    assert told.source().name == "mirror"
    assert told.source().age_s == pytest.approx(4.5)
    assert told.directory.layer("ffn1").age_s(clock.monotonic_s()) == pytest.approx(4.5)


def test_one_that_falls_silent_or_is_out_of_date_is_live_no_more(told, clock):
    told.connect()
    told.hear()
    clock.advance(SILENT_AFTER_S + 0.1)
    assert not told.is_live()
    clock.advance(FRESH_S)
    told.hear(age_s=FRESH_S + SILENT_AFTER_S)
    assert not told.is_live()
    told.hear(age_s=1.0)
    assert told.is_live()
    told.mirror.lost()
    assert not told.is_live()


def test_a_suspected_node_is_out_until_it_announces_itself_anew(told, swarm, clock):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0, 1}))
    clock.advance(5)
    told.hear(told.suspicion(swarm.alice))
    assert told.alive() == 0
    assert told.probed == [swarm.alice.public_key]
    clock.advance(1)
    told.hear(swarm.record(swarm.alice, {0, 1}))
    assert told.alive() == 2


def test_a_suspicion_is_taken_back_by_its_coordinator_and_by_nobody_else(told, swarm, clock):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}))
    clock.advance(1)
    suspicion = told.suspicion(swarm.alice)
    told.hear(suspicion)
    clock.advance(1)
    told.hear(told.absolution(suspicion, by=LIAR))
    assert told.alive() == 0
    told.hear(told.absolution(suspicion))
    assert told.alive() == 1
    told.hear(suspicion)  # an older one does not come back
    assert told.alive() == 1


def test_what_a_node_answered_to_us_counts_for_more_than_a_coordinators_word(told, swarm, clock):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}))
    told.directory.report_success(swarm.alice.public_key)
    told.hear(told.suspicion(swarm.alice, since_s=-1))
    assert (told.alive(), told.probed) == (1, [])  # it answered after that verdict
    clock.advance(2)
    told.hear(told.suspicion(swarm.alice))
    assert told.alive() == 0
    told.directory.report_success(swarm.alice.public_key)  # our own probe
    assert told.alive() == 1


def test_a_suspicion_ends_with_its_life(told, swarm, clock):
    told.connect()
    told.hear(told.suspicion(swarm.alice))
    clock.advance(59)
    told.directory.feed(swarm.record(swarm.bob, {1}))
    told.directory.prune()
    clock.advance(2)
    told.directory.prune()
    told.hear(swarm.record(swarm.alice, {0}))
    assert told.alive() == 2


def test_a_withdrawal_is_mirrored(told, swarm, clock):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}))
    clock.advance(1)
    told.hear(swarm.record(swarm.alice, {0}, tombstone=True))
    assert told.alive() == 0


def test_what_another_coordinator_suspected_is_forgotten(told, swarm, clock):
    told.connect(LIAR)
    told.hear(swarm.record(swarm.alice, {0}))
    clock.advance(1)
    told.hear(told.suspicion(swarm.alice, by=LIAR))
    assert told.alive() == 0
    told.mirror.lost()
    told.connect()
    assert told.alive() == 1


def test_a_suspicion_that_a_new_snapshot_does_not_restate_is_over(told, swarm, clock):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}), swarm.record(swarm.bob, {1}))
    clock.advance(1)
    of_bob = told.suspicion(swarm.bob)
    told.hear(told.suspicion(swarm.alice), of_bob)
    told.mirror.lost()
    told.connect()
    told.hear(of_bob, complete=False)
    assert told.alive() == 0
    told.hear()
    assert told.directory.find("ffn0.0.0") is not None
    assert told.directory.find("ffn0.0.1") is None


def forged(swarm):
    """Signed by somebody else than it says."""
    data = bytearray(swarm.record(swarm.alice, {0}).to_bytes())
    data[-1] ^= 1
    return bytes(data)


def test_what_is_forged_foreign_or_nonsense_is_refused_and_counted(told, swarm, clock):
    now_ms = int(clock.wall_s() * 1000)
    elsewhere = sign_record(
        swarm.alice, node_key("other", swarm.alice.public_key), b"x", sequence=now_ms, expires_ms=now_ms + 1000
    )
    told.connect()
    told.hear(
        forged(swarm),
        b"nonsense",
        elsewhere,
        told.suspicion(swarm.alice, by=LIAR),
        told.suspicion(swarm.alice, project="other"),
        sign_record(COORDINATOR, b"k" * 20, b"no suspicion", sequence=now_ms, expires_ms=now_ms + 1000),
    )
    assert told.alive() == 0
    assert told.mirror.refused.total() == 6
    assert told.probed == []


def test_an_older_announcement_does_not_come_back(told, swarm, clock):
    old = swarm.record(swarm.alice, {0, 1})
    clock.advance(1)
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}))
    told.hear(old)
    assert told.alive() == 1


def test_a_coordinator_that_goes_on_sending_junk_is_left(told):
    told.connect()
    told.hear(*[b"junk"] * MAX_REFUSED)
    with pytest.raises(WireError, match="too many"):
        told.hear(b"junk")


def test_a_message_that_is_missing_means_to_connect_again(told):
    told.connect()
    told.hear()
    with pytest.raises(WireError, match="was due"):
        told.mirror.heard(Mirrored(2, True, 0.0))


def test_made_up_nodes_without_end_do_not_fill_the_memory(told, swarm, monkeypatch):
    monkeypatch.setattr(mirror_module, "MAX_NODES", 10)
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}))
    for first in (1, 41):
        told.hear(*(swarm.record(Identity(bytes([first + number]) * 32), {1}) for number in range(40)))
        told.hear(*(told.suspicion(Identity(bytes([first + number]) * 32)) for number in range(40)), complete=False)
        told.mirror.lost()
        told.connect()
    assert told.directory.num_nodes == 10
    assert len(told.mirror._words) <= 10
    assert told.directory.find("ffn0.0.0") is not None


def test_a_message_about_many_nodes_makes_a_layers_view_anew_once(told, swarm):
    told.connect()
    told.hear(swarm.record(swarm.alice, {0}), swarm.record(swarm.bob, {1, 2}), swarm.record(swarm.carol, {3}))
    assert told.alive() == 4
    assert told.directory.layer("ffn0").version == 1
