"""The records' codec, and the reasons to refuse one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.dht.records import (
    MAX_LIFE_MS,
    MAX_RECORD_BYTES,
    MAX_VALUE_BYTES,
    SKEW_MS,
    Record,
    RecordVerifier,
    Refusal,
    canonical_bytes,
    newest_per_publisher,
    sign_record,
)
from learning_at_home.errors import WireError
from learning_at_home.identity import Identity

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)
KEY = b"k" * 20
NOW = 1_800_000_000_000


def record_of(identity=ALICE, value=b"value", sequence=NOW, expires_ms=NOW + 60_000, key=KEY) -> Record:
    return sign_record(identity, key, value, sequence=sequence, expires_ms=expires_ms)


@given(
    key=st.binary(min_size=20, max_size=20),
    value=st.binary(max_size=MAX_VALUE_BYTES),
    sequence=st.integers(0, (1 << 63) - 1),
    expires_ms=st.integers(0, (1 << 63) - 1),
)
def test_a_record_survives_its_bytes(key, value, sequence, expires_ms):
    record = sign_record(ALICE, key, value, sequence=sequence, expires_ms=expires_ms)

    assert Record.from_bytes(record.to_bytes()) == record
    assert len(record.to_bytes()) <= min(record.num_bytes, MAX_RECORD_BYTES)


def test_a_record_cut_off_anywhere_is_a_wire_error():
    data = record_of().to_bytes()
    for end in range(len(data)):
        with pytest.raises(WireError):
            Record.from_bytes(data[:end])


def test_a_record_with_more_behind_it_is_a_wire_error():
    with pytest.raises(WireError):
        Record.from_bytes(record_of().to_bytes() + b"\x00")


@given(st.binary(max_size=300))
def test_garbage_is_a_wire_error(data):
    with pytest.raises(WireError):
        Record.from_bytes(data)


@pytest.mark.parametrize(
    "fields",
    [
        [b"k" * 19, b"p" * 32, 1, 1, b"", b"s" * 64],
        [b"k" * 20, b"p" * 31, 1, 1, b"", b"s" * 64],
        [b"k" * 20, b"p" * 32, -1, 1, b"", b"s" * 64],
        [b"k" * 20, b"p" * 32, 1 << 63, 1, b"", b"s" * 64],
        [b"k" * 20, b"p" * 32, 1.5, 1, b"", b"s" * 64],
        [b"k" * 20, b"p" * 32, 1, 1, "text", b"s" * 64],
        [b"k" * 20, b"p" * 32, 1, 1, b"v" * (MAX_VALUE_BYTES + 1), b"s" * 64],
        [b"k" * 20, b"p" * 32, 1, 1, b"", b"s" * 63],
        [b"k" * 20, b"p" * 32, 1, 1, b"", b"s" * 64, "more"],
        [[[[[]]]]],
        {"key": b"k" * 20},
        None,
    ],
)
def test_fields_of_the_wrong_kind_or_size_are_wire_errors(fields):
    with pytest.raises(WireError):
        Record.from_bytes(msgspec.msgpack.encode(fields))


def test_deep_nesting_is_a_wire_error():
    with pytest.raises(WireError):
        Record.from_bytes(b"\x91" * 4_000)


def test_the_signed_bytes_never_change():
    """Golden: another version must verify what this one signed."""
    data = canonical_bytes(b"\x01" * 20, b"\x02" * 32, 3, 4, b"five")

    assert data == b"\x95\xc4\x14" + b"\x01" * 20 + b"\xc4\x20" + b"\x02" * 32 + b"\x03\x04\xc4\x04five"


@pytest.mark.parametrize(
    "life_ms, sequence, refusal",
    [
        (60_000, NOW, None),
        (1, NOW, None),
        (-SKEW_MS + 1, NOW, None),
        (-SKEW_MS, NOW, Refusal.EXPIRED),
        (-NOW, NOW, Refusal.EXPIRED),
        (MAX_LIFE_MS + SKEW_MS, NOW, None),
        (MAX_LIFE_MS + SKEW_MS + 1, NOW, Refusal.FROM_THE_FUTURE),
        (60_000, NOW + SKEW_MS, None),
        (60_000, NOW + SKEW_MS + 1, Refusal.FROM_THE_FUTURE),
        (60_000, 0, None),
    ],
)
def test_times_out_of_bounds_are_refused(life_ms, sequence, refusal):
    record = record_of(expires_ms=NOW + life_ms, sequence=sequence)

    assert RecordVerifier().refusal(record, NOW) is refusal


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"x" * 20},
        {"publisher": BOB.public_key},
        {"sequence": NOW - 1},
        {"expires_ms": NOW + 1},
        {"value": b"other"},
        {"signature": b"\0" * 64},
        {"publisher": b"\0" * 32},
    ],
)
def test_a_record_with_any_field_changed_is_refused(change):
    verifier = RecordVerifier()
    record = record_of()
    assert verifier.refusal(record, NOW) is None

    assert verifier.refusal(msgspec.structs.replace(record, **change), NOW) is Refusal.BAD_SIGNATURE


def test_a_signature_made_for_another_purpose_is_refused():
    message = canonical_bytes(KEY, ALICE.public_key, NOW, NOW + 60_000, b"value")
    forged = Record(KEY, ALICE.public_key, NOW, NOW + 60_000, b"value", ALICE.sign("telemetry", message))

    assert RecordVerifier().refusal(forged, NOW) is Refusal.BAD_SIGNATURE


def test_an_oversized_value_is_refused_before_its_signature_is_looked_at():
    huge = Record(KEY, ALICE.public_key, NOW, NOW + 1, b"v" * (MAX_VALUE_BYTES + 1), b"")

    assert RecordVerifier().refusal(huge, NOW) is Refusal.OVERSIZED


def test_the_cache_of_good_signatures_stays_bounded_and_still_refuses_bad_ones():
    verifier = RecordVerifier(cache_size=2)
    records = [record_of(value=bytes([number])) for number in range(5)]
    for record in records * 2:
        assert verifier.refusal(record, NOW) is None

    assert len(verifier._verified) == 2
    forged = msgspec.structs.replace(records[-1], signature=records[-2].signature)
    assert verifier.refusal(forged, NOW) is Refusal.BAD_SIGNATURE


def test_of_each_publisher_the_newest_record_counts_in_whatever_order_they_come():
    old, new, other = record_of(sequence=NOW - 1), record_of(value=b"new"), record_of(BOB, sequence=5)
    expected = {ALICE.public_key: new, BOB.public_key: other}

    assert newest_per_publisher([old, new, other]) == expected
    assert newest_per_publisher([other, new, old, old, old]) == expected


def test_of_two_records_with_one_sequence_every_reader_picks_the_same():
    one, two = record_of(value=b"one"), record_of(value=b"two")

    assert newest_per_publisher([one, two]) == newest_per_publisher([two, one])
