"""What a trainer that comes into a shared group does next, by what the hosts say."""

import pytest

from learning_at_home.client.shared_start import PATIENCE_S, Move, next_move

LATE_S = PATIENCE_S + 1


@pytest.mark.parametrize(
    "versions,is_first,unchanged_s,fill_missing,move",
    [
        ([1, 1], False, 0, False, Move.TAKE),
        ([57, 1], False, 0, False, Move.TAKE),
        ([0, 0], False, 0, False, Move.CLAIM),
        ([1, 0], True, 0, False, Move.FILL),  # we have claimed it
        ([1, 0], False, 0, False, Move.WAIT),  # somebody else is about to
        ([1, 0], False, LATE_S, False, Move.FILL),  # ... and has died
        ([57, 0], False, LATE_S, False, Move.WAIT),  # for a trainer that has a copy
        ([57, 0], False, 0, True, Move.FILL),  # there is none any more, and we were told so
        ([0, 1], False, LATE_S, False, Move.FILL),
        ([None, 0], False, LATE_S, True, Move.WAIT),  # for a host
        ([None, 57], True, LATE_S, False, Move.WAIT),
    ],
)
def test_the_next_move(versions, is_first, unchanged_s, fill_missing, move):
    assert next_move(versions, is_first=is_first, unchanged_s=unchanged_s, fill_missing=fill_missing) is move
