"""What a peer holds for others, as tables with `now`."""

import pytest

from learning_at_home.dht.records import SKEW_MS, Record, RecordVerifier, Refusal, sign_record
from learning_at_home.dht.storage import RecordStorage, StorageBounds
from learning_at_home.identity import Identity

NOW = 1_800_000_000_000
KEY, OTHER_KEY = b"k" * 20, b"o" * 20
PEOPLE = [Identity(bytes([number]) * 32) for number in range(8)]
ALICE, BOB, CAROL = PEOPLE[:3]


def record_of(identity=ALICE, value=b"value", sequence=NOW, expires_ms=NOW + 60_000, key=KEY) -> Record:
    return sign_record(identity, key, value, sequence=sequence, expires_ms=expires_ms)


def storage_of(**bounds: int) -> RecordStorage:
    return RecordStorage(RecordVerifier(), StorageBounds(**bounds))


def test_each_publisher_has_its_own_record_under_a_key():
    storage = storage_of()
    records = [record_of(alice_or_bob) for alice_or_bob in (ALICE, BOB)]
    for record in records:
        assert storage.put(record, NOW) is None

    assert storage.records(KEY, NOW) == sorted(records, key=lambda record: record.publisher)
    assert storage.records(OTHER_KEY, NOW) == []
    assert storage.num_records == 2


def test_a_newer_record_takes_the_place_of_the_older():
    storage = storage_of()
    storage.put(record_of(value=b"old"), NOW)

    assert storage.put(record_of(value=b"new", sequence=NOW + 1), NOW) is None
    assert [record.value for record in storage.records(KEY, NOW)] == [b"new"]
    assert (storage.num_records, storage.num_bytes) == (1, 153)


def test_a_record_held_already_is_no_refusal():
    storage = storage_of()
    storage.put(record_of(), NOW)

    assert storage.put(record_of(), NOW) is None
    assert storage.num_records == 1
    assert not storage.refusals


@pytest.mark.parametrize(
    "record, refusal",
    [
        (record_of(value=b"replayed", sequence=NOW - 1, expires_ms=NOW + 90_000), Refusal.OLDER),
        (record_of(BOB, expires_ms=NOW - SKEW_MS), Refusal.EXPIRED),
        (record_of(BOB, sequence=NOW + 3_600_000), Refusal.FROM_THE_FUTURE),
        (record_of(BOB, expires_ms=NOW + 30 * 3_600_000), Refusal.FROM_THE_FUTURE),
        (Record(KEY, BOB.public_key, NOW, NOW + 1, b"forged", b"s" * 64), Refusal.BAD_SIGNATURE),
        (Record(KEY, BOB.public_key, NOW, NOW + 1, b"v" * 5_000, b"s" * 64), Refusal.OVERSIZED),
        (Record(KEY, ALICE.public_key, NOW + 1, NOW + 1, b"forged", b"s" * 64), Refusal.BAD_SIGNATURE),
    ],
)
def test_a_refused_record_changes_nothing_but_its_counter(record: Record, refusal: Refusal):
    storage = storage_of()
    storage.put(record_of(), NOW)
    before = (storage.records(KEY, NOW), storage.num_records, storage.num_bytes)

    assert storage.put(record, NOW) is refusal

    assert (storage.records(KEY, NOW), storage.num_records, storage.num_bytes) == before
    assert storage.refusals == {refusal.value: 1}


def test_records_are_forgotten_when_their_life_and_the_tolerated_skew_are_over():
    storage = storage_of()
    storage.put(record_of(expires_ms=NOW + 1_000), NOW)

    assert storage.records(KEY, NOW + 1_000 + SKEW_MS - 1)
    assert storage.records(KEY, NOW + 1_000 + SKEW_MS) == []
    assert (storage.num_records, storage.num_bytes) == (0, 0)


def test_a_renewed_record_does_not_expire_with_its_predecessor():
    storage = storage_of()
    storage.put(record_of(expires_ms=NOW + 1_000), NOW)
    storage.put(record_of(sequence=NOW + 1, expires_ms=NOW + 60_000), NOW)

    assert len(storage.records(KEY, NOW + 30_000)) == 1


def test_a_tombstone_keeps_the_record_before_it_from_coming_back():
    storage = storage_of()
    alive = record_of(expires_ms=NOW + 60_000)
    storage.put(alive, NOW)
    storage.put(record_of(value=b"", sequence=NOW + 1, expires_ms=NOW + 60_001), NOW)

    for later_ms in (0, 30_000, 69_999, 70_000, 70_001, 80_000):
        assert storage.put(alive, NOW + later_ms) in (Refusal.OLDER, Refusal.EXPIRED)


def test_a_full_key_keeps_the_freshest():
    storage = storage_of(records_per_key=2)
    storage.put(record_of(ALICE, sequence=NOW - 20), NOW)
    storage.put(record_of(BOB, sequence=NOW - 10), NOW)

    assert storage.put(record_of(CAROL, sequence=NOW - 30, expires_ms=NOW + 3_600_000), NOW) is Refusal.KEY_FULL
    assert storage.put(record_of(CAROL, sequence=NOW), NOW) is None

    assert {record.publisher for record in storage.records(KEY, NOW)} == {BOB.public_key, CAROL.public_key}


def test_a_publisher_over_its_quota_is_refused_and_others_are_not():
    storage = storage_of(records_per_publisher=1)
    storage.put(record_of(), NOW)

    assert storage.put(record_of(key=OTHER_KEY), NOW) is Refusal.PUBLISHER_QUOTA
    assert storage.put(record_of(BOB, key=OTHER_KEY), NOW) is None
    assert storage.put(record_of(sequence=NOW + 1), NOW) is None


def test_a_publisher_s_bytes_are_bounded_and_come_free_again():
    storage = storage_of(bytes_per_publisher=1_000)
    storage.put(record_of(value=b"v" * 700, expires_ms=NOW + 1_000), NOW)

    assert storage.put(record_of(value=b"v", key=OTHER_KEY), NOW) is Refusal.PUBLISHER_QUOTA
    assert storage.put(record_of(value=b"v", key=OTHER_KEY), NOW + 1_000 + SKEW_MS) is None


def test_a_full_storage_refuses_but_lets_what_it_holds_be_renewed():
    storage = storage_of(total_bytes=400)
    storage.put(record_of(ALICE), NOW)
    storage.put(record_of(BOB), NOW)

    assert storage.put(record_of(CAROL), NOW) is Refusal.STORAGE_FULL
    assert storage.put(record_of(BOB, sequence=NOW + 1), NOW) is None


def test_pages_bring_every_record_once():
    storage = storage_of()
    for person in PEOPLE:
        storage.put(record_of(person, value=b"v" * 100), NOW)

    pages, after = [], b""
    while True:
        page = storage.page(KEY, after, max_bytes=600, now_ms=NOW)
        pages.append(page.records)
        if not page.more:
            break
        after = page.more

    brought = [Record.from_bytes(data) for page in pages for data in page]
    assert brought == storage.records(KEY, NOW)
    assert [len(page) for page in pages] == [2, 2, 2, 2]


def test_a_page_that_has_no_room_for_a_record_says_where_to_go_on():
    storage = storage_of()
    storage.put(record_of(value=b"v" * 4_000), NOW)

    short = storage.page(KEY, b"", max_bytes=4_000, now_ms=NOW)
    assert short.records == ()
    assert short.more

    page = storage.page(KEY, short.more, max_bytes=4_200, now_ms=NOW)
    assert (len(page.records), page.more) == (1, b"")


def test_renewing_a_long_life_over_and_over_does_not_fill_the_memory():
    storage = storage_of()
    for number in range(1_200):
        storage.put(record_of(sequence=NOW - 1_200 + number, expires_ms=NOW + 86_400_000), NOW)

    assert storage.num_records == 1
    assert len(storage._expiries) <= 1_002
