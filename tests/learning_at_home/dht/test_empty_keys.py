"""What was empty a moment ago."""

from learning_at_home.dht.empty_keys import EMPTY_S, MAX_KEYS, EmptyKeys

KEY = b"k" * 20


def test_it_is_remembered_for_a_moment():
    empty = EmptyKeys()
    empty.note(KEY, 8, now=10.0)

    assert empty.num_answered(KEY, now=10.0 + EMPTY_S / 2) == 8
    assert empty.num_answered(KEY, now=10.0 + EMPTY_S) is None
    assert empty.num_answered(b"o" * 20, now=10.0) is None


def test_a_store_ends_it():
    empty = EmptyKeys()
    empty.note(KEY, 8, now=10.0)
    empty.forget(KEY)

    assert empty.num_answered(KEY, now=10.0) is None


def test_it_is_bounded():
    empty = EmptyKeys()
    for number in range(2 * MAX_KEYS):
        empty.note(number.to_bytes(20, "big"), 8, now=10.0)

    assert empty.num_answered(bytes(20), now=10.0) is None
    assert len(empty._seen) == MAX_KEYS
