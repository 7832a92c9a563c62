"""What is pushed to trainers: a snapshot, then what is new, each node's newest once; suspicions and their ends."""

import asyncio
import base64

import msgspec
import pytest

from backend.live import mirror as mirror_module
from backend.live.mirror import MirrorHub, Subscriber
from learning_at_home.coordinator_messages import MAX_MIRRORED_RECORDS, Mirrored, decode_coordinator
from learning_at_home.dht.records import Record, sign_record
from learning_at_home.directory.announcement import node_key
from learning_at_home.directory.coordinator_suspicion import CoordinatorSuspicion
from learning_at_home.errors import NodeOverloaded
from learning_at_home.identity import Identity
from tests.backend.kit import ALICE, BOB, CAROL, NOW


def record_of(person: Identity, at_s: float = NOW, life_s: float = 60.0, value: bytes = b"said") -> Record:
    key = node_key("digits", person.public_key)
    return sign_record(person, key, value, sequence=int(at_s * 1000), expires_ms=int((at_s + life_s) * 1000))


def taken(hub: MirrorHub, subscriber: Subscriber, now: float = NOW) -> Mirrored:
    """The next message as a trainer decodes it."""
    message = decode_coordinator(msgspec.json.encode(hub.take(subscriber, now)).decode())
    assert isinstance(message, Mirrored)
    return message


def records(message: Mirrored) -> list[Record]:
    return [Record.from_bytes(data) for data in message.records]


@pytest.fixture
def hub() -> MirrorHub:
    return MirrorHub("digits", CAROL)


def test_before_the_dht_was_asked_nothing_is_complete(hub):
    with hub.subscribed() as subscriber:
        assert not taken(hub, subscriber).complete
        hub.seen([], NOW)
        message = taken(hub, subscriber, NOW + 3)
        assert (message.complete, message.age_s, message.sequence) == (True, 3.0, 1)


def test_a_newcomer_is_told_everything_and_then_what_is_new(hub):
    hub.seen([record_of(ALICE), record_of(BOB)], NOW)
    with hub.subscribed() as subscriber:
        first = taken(hub, subscriber)
        assert {record.publisher for record in records(first)} == {ALICE.public_key, BOB.public_key}
        assert taken(hub, subscriber).records == ()
        hub.seen([record_of(ALICE, NOW + 1), record_of(BOB)], NOW + 1)
        assert [record.publisher for record in records(taken(hub, subscriber))] == [ALICE.public_key]


def test_what_comes_while_a_slow_trainer_reads_is_merged(hub):
    hub.seen([record_of(ALICE)], NOW)
    with hub.subscribed() as subscriber:
        for second in range(50):
            hub.seen([record_of(ALICE, NOW + second)], NOW + second)
        assert len(subscriber.pending) == 1
        (newest,) = records(taken(hub, subscriber))
        assert newest.sequence == int((NOW + 49) * 1000)


def test_an_older_record_is_told_to_nobody(hub):
    hub.seen([record_of(ALICE, NOW + 5)], NOW)
    with hub.subscribed() as subscriber:
        taken(hub, subscriber)
        hub.seen([record_of(ALICE)], NOW)
        assert taken(hub, subscriber).records == ()


def test_a_large_snapshot_travels_in_parts_and_is_complete_with_the_last(hub):
    people = [Identity(number.to_bytes(32, "big")) for number in range(MAX_MIRRORED_RECORDS + 1)]
    hub.seen([record_of(person) for person in people], NOW)
    with hub.subscribed() as subscriber:
        sizes = [(len(message.records), message.complete) for message in (taken(hub, subscriber) for _ in range(2))]
    assert sizes == [(MAX_MIRRORED_RECORDS, False), (1, True)]


def test_what_expired_is_forgotten(hub):
    hub.seen([record_of(ALICE, life_s=5), record_of(BOB)], NOW)
    hub.seen([], NOW + 6)
    with hub.subscribed() as subscriber:
        assert [record.publisher for record in records(taken(hub, subscriber))] == [BOB.public_key]


def suspicions(message: Mirrored) -> list[tuple[bytes, int] | None]:
    """Node and time of each; None: taken back."""
    said = [record for record in records(message) if record.publisher == CAROL.public_key]
    told = [None if record.is_tombstone else CoordinatorSuspicion.from_record(record) for record in said]
    return [(each.node, each.since_ms) if each is not None else None for each in told]


def test_a_suspicion_is_told_once_and_taken_back(hub):
    hub.seen([record_of(ALICE)], NOW)
    with hub.subscribed() as subscriber:
        taken(hub, subscriber)
        hub.suspect({ALICE.public_key: NOW + 5}, NOW + 6)
        assert suspicions(taken(hub, subscriber)) == [(ALICE.public_key, int((NOW + 5) * 1000))]
        hub.suspect({ALICE.public_key: NOW + 8}, NOW + 8)
        assert taken(hub, subscriber).records == ()
        hub.suspect({}, NOW + 9)
        assert suspicions(taken(hub, subscriber)) == [None]
        hub.suspect({ALICE.public_key: NOW + 10}, NOW + 10)
        assert suspicions(taken(hub, subscriber)) == [(ALICE.public_key, int((NOW + 10) * 1000))]


def test_a_node_that_announced_itself_and_does_not_answer_after_that_is_suspected_anew(hub):
    hub.seen([record_of(ALICE)], NOW)
    with hub.subscribed() as subscriber:
        hub.suspect({ALICE.public_key: NOW + 5}, NOW + 5)
        hub.seen([record_of(ALICE, NOW + 6)], NOW + 6)
        taken(hub, subscriber)
        hub.suspect({ALICE.public_key: NOW + 5}, NOW + 7)
        assert taken(hub, subscriber).records == ()
        hub.suspect({ALICE.public_key: NOW + 7}, NOW + 7)
        assert suspicions(taken(hub, subscriber)) == [(ALICE.public_key, int((NOW + 7) * 1000))]


def test_there_is_room_for_so_many_trainers(hub, monkeypatch):
    monkeypatch.setattr(mirror_module, "MAX_SUBSCRIBERS", 1)
    with hub.subscribed(), pytest.raises(NodeOverloaded), hub.subscribed():
        pass
    with hub.subscribed():
        pass


async def test_whoever_waits_is_woken_by_news_and_by_the_end(hub):
    with hub.subscribed() as subscriber:
        waiting = asyncio.create_task(subscriber.wait())
        await asyncio.sleep(0)
        hub.seen([record_of(ALICE)], NOW)
        async with asyncio.timeout(5):
            await waiting
        taken(hub, subscriber)
        waiting = asyncio.create_task(subscriber.wait())
        await asyncio.sleep(0)
        hub.close()
        async with asyncio.timeout(5):
            await waiting
        assert subscriber.closed


def test_records_travel_as_base64_of_their_bytes(hub):
    hub.seen([record_of(ALICE)], NOW)
    with hub.subscribed() as subscriber:
        sent = msgspec.json.decode(msgspec.json.encode(hub.take(subscriber, NOW)))
    assert base64.b64decode(sent["records"][0]) == record_of(ALICE).to_bytes()
