"""Slots of a key: who has a place, as tables with `now`."""

import msgspec
import pytest

from learning_at_home.dht.holdings import Quota
from learning_at_home.dht.records import SKEW_MS, Record, RecordVerifier, Refusal, key_of, sign_record
from learning_at_home.dht.slot_exchange import _agreed
from learning_at_home.dht.slots import (
    MAX_ENDED,
    MAX_LIVES,
    MAX_SLOTS_AT_ONCE,
    QUOTA,
    Claimant,
    SlotStorage,
    surplus,
)
from learning_at_home.identity import Identity

NOW = 1_800_000_000_000
NAME, OTHER_NAME = "slots/of/something", "slots/of/something/else"
KEY, HOME = key_of(NAME), b"h" * 20
PEOPLE = [Identity(bytes([number]) * 32) for number in range(8)]
ALICE, BOB, CAROL = PEOPLE[:3]


class ValueIsSlots:
    """A rule for these tests: each byte of a record's value is a slot."""

    def slots(self, record: Record, name: str) -> tuple[int, ...]:
        return tuple(sorted(set(record.value))) if name in (NAME, OTHER_NAME) else ()


def record_of(identity=ALICE, slots=b"\x01", sequence=NOW, expires_ms=NOW + 60_000, key=HOME) -> Record:
    return sign_record(identity, key, slots, sequence=sequence, expires_ms=expires_ms)


def storage_of(quota: Quota = QUOTA) -> SlotStorage:
    return SlotStorage(RecordVerifier(), ValueIsSlots(), quota)


def read(storage: SlotStorage, now_ms=NOW, wanted=None, known=b"", name=NAME) -> list[Record]:
    page = storage.page(key_of(name), 0, wanted, known, 1 << 20, now_ms)
    return [Record.from_bytes(data) for data in page.records]


def lives(storage: SlotStorage, now_ms=NOW, first=0) -> dict[int, int]:
    page = storage.page(KEY, first, (), b"", 1 << 20, now_ms)
    return {first + slot: life_s for slot, life_s in enumerate(page.lives) if life_s}


def claimants(*since_and_fresh: tuple[int, int]) -> list[Claimant]:
    return [Claimant(bytes([number]), *each) for number, each in enumerate(since_and_fresh)]


@pytest.mark.parametrize(
    "since_and_fresh, loser",
    [
        ([], None),
        ([(1, 1), (2, 2), (3, 3), (4, 4)], None),
        ([(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)], 2),  # 0 and 1 are there longest; of the others 2 renewed longest ago
        ([(1, 1), (2, 2), (3, 9), (4, 4), (5, 5)], 3),  # 2 has renewed since
        ([(1, 0), (2, 0), (3, 9), (4, 8), (5, 7)], 4),  # the newcomer itself: its record is older than the others'
        ([(5, 9), (5, 9), (5, 9), (5, 9), (5, 9)], 2),  # all alike: every holder decides the same
    ],
)
def test_two_places_go_by_tenure_and_two_by_freshness(since_and_fresh, loser):
    everyone = claimants(*since_and_fresh)

    assert surplus(everyone) == (None if loser is None else everyone[loser])


def test_one_record_fills_its_slots_under_every_name():
    storage = storage_of()
    record = record_of(slots=b"\x01\x05")

    assert storage.put(record, NAME, NOW) is None
    assert storage.put(record, OTHER_NAME, NOW) is None
    assert storage.put(record, NAME, NOW) is None  # held already

    assert lives(storage) == {1: 60, 5: 60}
    assert read(storage) == read(storage, name=OTHER_NAME) == [record]
    assert (storage.num_records, storage.refusals) == (2, {})


@pytest.mark.parametrize(
    "record, name, refusal",
    [
        (record_of(BOB), "a name that means nothing", Refusal.NO_SLOT),
        (record_of(BOB, slots=b""), NAME, Refusal.NO_SLOT),
        (record_of(sequence=NOW - 1, slots=b"\x02"), NAME, Refusal.OLDER),
        (record_of(sequence=NOW + 1, slots=b"", key=b"e" * 20), NAME, Refusal.MALFORMED),  # its end is another's
        (record_of(BOB, expires_ms=NOW - SKEW_MS), NAME, Refusal.EXPIRED),
        (record_of(BOB, sequence=NOW + 3_600_000), NAME, Refusal.FROM_THE_FUTURE),
        (Record(HOME, BOB.public_key, NOW, NOW + 1, b"\x01", b"s" * 64), NAME, Refusal.BAD_SIGNATURE),
    ],
)
def test_what_is_refused_changes_nothing_but_its_counter(record: Record, name: str, refusal: Refusal):
    storage = storage_of()
    storage.put(record_of(), NAME, NOW)

    assert storage.put(record, name, NOW) == refusal

    assert (read(storage), lives(storage), storage.num_records) == ([record_of()], {1: 60}, 1)
    assert storage.refusals == {refusal.value: 1}


def test_incumbents_who_renew_keep_their_places_through_a_flood_of_strangers():
    storage = storage_of()
    honest = [ALICE, BOB]
    strangers = [Identity(number.to_bytes(32, "big")) for number in range(1_000, 1_300)]
    for moment, person in enumerate(honest):
        storage.put(record_of(person, sequence=NOW + moment), NAME, NOW + moment)

    for number, stranger in enumerate(strangers):
        now_ms = NOW + 1_000 + number * 100
        storage.put(record_of(stranger, slots=b"\x01\x02\x03", sequence=now_ms + 9_000), NAME, now_ms)
        if number % 50 == 0:
            for person in honest:
                storage.put(record_of(person, sequence=now_ms, expires_ms=now_ms + 60_000), NAME, now_ms)

    publishers = {record.publisher for record in read(storage, NOW + 31_000, wanted=(1,))}
    assert {person.public_key for person in honest} <= publishers
    assert len(publishers) == 4
    assert storage.num_records <= 3 * 4  # three slots, however many came


def test_a_newcomer_is_seen_in_a_slot_whose_incumbents_never_leave():
    storage = storage_of()
    for moment, person in enumerate(PEOPLE[:4]):
        storage.put(record_of(person, sequence=NOW + moment), NAME, NOW + moment)

    assert storage.put(record_of(PEOPLE[4], sequence=NOW + 10), NAME, NOW + 10) is None

    assert PEOPLE[4].public_key in {record.publisher for record in read(storage)}
    assert storage.put(record_of(PEOPLE[5], sequence=NOW - 500), NAME, NOW + 11) is Refusal.SLOT_FULL


def test_whoever_lets_its_record_expire_begins_anew():
    storage = storage_of()
    storage.put(record_of(ALICE, expires_ms=NOW + 1_000), NAME, NOW)
    for moment, person in enumerate(PEOPLE[1:4]):
        storage.put(record_of(person, sequence=NOW + moment), NAME, NOW + moment)
    later = NOW + 1_000 + SKEW_MS

    assert lives(storage, later) == {1: 49}
    for number in (0, 5, 6):
        storage.put(record_of(PEOPLE[number], sequence=NOW + 20 + number), NAME, later)

    assert {record.publisher for record in read(storage, later)} == {PEOPLE[n].public_key for n in (1, 2, 5, 6)}


def test_a_tombstone_frees_the_slots_and_keeps_the_record_from_coming_back():
    storage = storage_of()
    alive = record_of()
    storage.put(alive, NAME, NOW)
    tombstone = record_of(slots=b"", sequence=NOW + 1, expires_ms=NOW + 60_001)

    assert storage.put(tombstone, NAME, NOW) is None

    assert lives(storage) == {}
    assert read(storage) == [tombstone]
    assert storage.put(alive, NAME, NOW) is Refusal.OLDER


def test_a_renewal_that_claims_less_frees_the_rest_and_one_that_claims_nothing_is_told_first():
    storage = storage_of()
    storage.put(record_of(slots=b"\x01\x02"), NAME, NOW)
    storage.put(record_of(BOB), NAME, NOW)
    storage.put(record_of(slots=b"\x02", sequence=NOW + 1), NAME, NOW)
    assert lives(storage) == {1: 60, 2: 60}
    assert [record.publisher for record in read(storage, wanted=(1,))] == [BOB.public_key]

    moved = record_of(slots=b"", sequence=NOW + 2)
    storage.put(moved, NAME, NOW)
    assert lives(storage) == {1: 60}
    assert [record.publisher for record in read(storage, wanted=(1,))] == [ALICE.public_key, BOB.public_key]


def test_those_that_left_are_remembered_but_not_without_end():
    storage = storage_of()
    for number in range(MAX_ENDED + 20):
        person = Identity(number.to_bytes(32, "big"))
        storage.put(record_of(person), NAME, NOW)
        storage.put(record_of(person, slots=b"", sequence=NOW + 1), NAME, NOW)

    assert storage.num_records == MAX_ENDED


def test_a_page_tells_what_is_wanted_most_first_and_the_rest_to_who_names_what_it_knows():
    storage = storage_of()
    for slot, person in enumerate(PEOPLE):
        storage.put(record_of(person, slots=bytes([slot])), NAME, NOW)

    wanted, known, brought = (5, 2, 7, 0), b"", []
    while True:
        page = storage.page(KEY, 0, wanted, known, 400, NOW)
        records = [Record.from_bytes(data) for data in page.records]
        brought += records
        known += b"".join(record.tag for record in records)
        if not page.has_more:
            break

    assert [record.value[0] for record in brought] == [5, 2, 7, 0]
    assert storage.page(KEY, 0, (), b"", 400, NOW).records == ()
    assert lives(storage, first=6) == {6: 60, 7: 60}


def test_a_publisher_over_its_quota_is_refused_and_others_are_not():
    storage = storage_of(Quota(records_per_publisher=1, bytes_per_publisher=1_000, total_bytes=1_200))

    assert storage.put(record_of(slots=bytes(range(10))), NAME, NOW) is Refusal.PUBLISHER_QUOTA
    assert storage.put(record_of(), NAME, NOW) is None
    assert storage.put(record_of(), OTHER_NAME, NOW) is Refusal.PUBLISHER_QUOTA
    assert storage.put(record_of(BOB, slots=b"\x01\x02\x03\x04\x05\x06"), NAME, NOW) is None
    assert storage.put(record_of(CAROL), NAME, NOW) is Refusal.STORAGE_FULL
    assert storage.put(record_of(sequence=NOW + 1, expires_ms=NOW + 60_001), NAME, NOW) is None


def test_names_beyond_the_slots_of_one_request_are_refused_without_a_look():
    class Wide:
        def __init__(self) -> None:
            self.num_asked = 0

        def slots(self, record: Record, name: str) -> range:
            self.num_asked += 1
            return range(8_192)

    rule = Wide()
    storage = SlotStorage(RecordVerifier(), rule)

    refusals = storage.put_many(record_of(), [f"grid {number}" for number in range(64)], NOW)

    assert refusals == [None] * 2 + [Refusal.PUBLISHER_QUOTA] * 62
    assert rule.num_asked == 2
    assert storage.refusals == {"publisher-quota": 62}
    assert storage.put_many(record_of(), ["grid 0", "grid 9"], NOW) == [None, None]


@pytest.mark.parametrize("wanted, num_records", [((), 0), ((3, 9), 1), (None, 1)])
def test_a_page_does_not_walk_all_the_slots_of_a_wide_key(wanted, num_records):
    class Wide:
        def slots(self, record: Record, name: str) -> range:
            return range(MAX_SLOTS_AT_ONCE)

    class NeverWalked(dict[int, tuple[bytes, ...]]):
        def __iter__(self):
            raise AssertionError("there may be millions")

        items = __iter__

    storage = SlotStorage(RecordVerifier(), Wide())
    storage.put(record_of(), NAME, NOW)
    here = storage._keys[KEY]
    here.slots = NeverWalked(here.slots)

    page = storage.page(KEY, 1_000, wanted, b"", 5_000, NOW)

    assert page.lives == bytes([60]) * MAX_LIVES
    assert len(page.records) == num_records


def test_what_expired_counts_for_nothing_and_endless_renewal_fills_no_memory():
    storage = storage_of()
    for number in range(1_200):
        storage.put(record_of(sequence=NOW + number, expires_ms=NOW + 3_600_000 + number), NAME, NOW + number)
    assert len(storage._expiries) <= 1_002

    storage.prune(NOW + 3_700_000)
    assert (storage.num_records, storage.num_bytes) == (0, 0)


def test_of_a_slots_lives_more_than_a_quarter_of_those_who_hold_the_key_are_believed():
    honest, liar, on_the_way = bytes([0, 30, 0]), bytes([9, 0, 9]), b""

    assert _agreed([honest] * 3 + [liar] + [on_the_way] * 20, first=8) == {9: 30}
    assert _agreed([honest] + [on_the_way] * 20, first=0) == {1: 30}
    assert _agreed([on_the_way] * 3, first=0) == {}


class CountingVerifier(RecordVerifier):
    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def refusal(self, record: Record, now_ms: int) -> Refusal | None:
        self.num_asked += 1
        return super().refusal(record, now_ms)


def test_a_record_for_many_names_is_verified_once_and_each_name_has_an_answer_of_its_own():
    verifier = CountingVerifier()
    storage = SlotStorage(verifier, ValueIsSlots())

    assert storage.put_many(record_of(), [NAME, "elsewhere", OTHER_NAME], NOW) == [None, Refusal.NO_SLOT, None]
    assert verifier.num_asked == 1
    assert storage.put_many(record_of(), [NAME, OTHER_NAME], NOW) == [None, None]
    assert verifier.num_asked == 1

    forged = msgspec.structs.replace(record_of(sequence=NOW + 1), value=b"\x02")
    assert storage.put_many(forged, [NAME, OTHER_NAME], NOW) == [Refusal.BAD_SIGNATURE] * 2
    assert read(storage) == [record_of()]


def test_a_renewal_in_other_slots_leaves_the_old_ones_and_is_counted_once():
    storage = storage_of()
    storage.put(record_of(slots=b"\x01\x02"), NAME, NOW)
    storage.put(record_of(BOB, slots=b"\x02"), NAME, NOW)
    storage.put(record_of(slots=b"\x02\x03", sequence=NOW + 1), NAME, NOW)

    assert set(lives(storage)) == {2, 3}
    assert {record.publisher for record in read(storage, wanted=(2,))} == {ALICE.public_key, BOB.public_key}
    fresh = storage_of()
    fresh.put(record_of(BOB, slots=b"\x02"), NAME, NOW)
    fresh.put(record_of(slots=b"\x02\x03", sequence=NOW + 1), NAME, NOW)
    assert (storage.num_records, storage.num_bytes) == (fresh.num_records, fresh.num_bytes)
