"""Tokens, and how much is sent to one that has shown none."""

import pytest

from learning_at_home.dht.address_proofs import (
    FIRST_REQUEST_BYTES,
    MAX_TOKENS,
    PING_BACK_BYTES,
    PINGS_BACK,
    SECRET_LIFE_S,
    TOKEN_LIFE_S,
    UNPROVEN_FACTOR,
    HeldTokens,
    TokenIssuer,
    room_for_answer,
)
from learning_at_home.dht.datagrams import MAX_DATAGRAM_BYTES, MAX_MESSAGE_BYTES, NO_TOKEN, OVERHEAD_BYTES, ROOM_BYTES
from learning_at_home.dht.messages import PING_BYTES
from learning_at_home.dht.questions import MAX_SENT

ALICE, BOB = b"a" * 32, b"b" * 32
HERE, THERE = ("20.0.0.1", 7_000), ("20.0.0.1", 7_001)


def test_a_token_proves_one_peer_at_one_address():
    issuer = TokenIssuer()
    token = issuer.token(ALICE, HERE, 0.0)

    assert issuer.proves(token, ALICE, HERE, 1.0)
    assert not issuer.proves(token, BOB, HERE, 1.0)
    assert not issuer.proves(token, ALICE, THERE, 1.0)
    assert not issuer.proves(NO_TOKEN, ALICE, HERE, 1.0)
    assert not TokenIssuer().proves(token, ALICE, HERE, 1.0)


@pytest.mark.parametrize("issued_s, good_for_s", [(0.0, 2 * SECRET_LIFE_S), (SECRET_LIFE_S - 1, SECRET_LIFE_S + 1)])
def test_a_token_is_good_for_as_long_as_its_secret_and_the_next_one_live(issued_s: float, good_for_s: float):
    issuer = TokenIssuer()
    issuer.token(BOB, THERE, 0.0)
    token = issuer.token(ALICE, HERE, issued_s)
    last_s = issued_s + good_for_s

    assert issuer.proves(token, ALICE, HERE, last_s - SECRET_LIFE_S)
    assert issuer.proves(token, ALICE, HERE, last_s - 0.1)
    assert not issuer.proves(token, ALICE, HERE, last_s)


def test_after_a_long_silence_no_old_token_is_good():
    issuer = TokenIssuer()
    token = issuer.token(ALICE, HERE, 0.0)

    assert not issuer.proves(token, ALICE, HERE, 2 * SECRET_LIFE_S)


def test_a_holder_trusts_a_token_for_less_long_than_it_is_good():
    held = HeldTokens()
    held.note(HERE, ALICE, b"tokentok", 0.0)

    assert TOKEN_LIFE_S < SECRET_LIFE_S
    assert held.of(HERE, ALICE, TOKEN_LIFE_S - 0.1) == b"tokentok"
    assert held.of(HERE, ALICE, TOKEN_LIFE_S) is None
    held.forget(HERE, ALICE)
    assert held.of(HERE, ALICE, 0.0) is None
    assert held.of(THERE, ALICE, 0.0) is held.of(HERE, BOB, 0.0) is held.of(HERE, None, 0.0) is None


def test_so_many_tokens_are_held_the_latest():
    held = HeldTokens()
    for number in range(MAX_TOKENS + 1):
        held.note(HERE, number.to_bytes(32, "big"), b"tokentok", 0.0)

    assert held.of(HERE, bytes(32), 0.0) is None
    assert held.of(HERE, MAX_TOKENS.to_bytes(32, "big"), 0.0) == b"tokentok"


@pytest.mark.parametrize("request_bytes", [OVERHEAD_BYTES + PING_BYTES, 120, 250, FIRST_REQUEST_BYTES, 1_200])
def test_all_that_an_unproven_request_brings_is_bounded_by_its_length(request_bytes: int):
    room = room_for_answer(request_bytes, is_proven=False)

    assert OVERHEAD_BYTES + room + PING_BACK_BYTES <= UNPROVEN_FACTOR * request_bytes
    assert OVERHEAD_BYTES + room <= MAX_DATAGRAM_BYTES
    assert room_for_answer(request_bytes, is_proven=True) == MAX_MESSAGE_BYTES


def test_a_first_request_is_long_enough_for_a_whole_answer_and_a_ping_for_a_pong():
    assert room_for_answer(FIRST_REQUEST_BYTES, is_proven=False) == ROOM_BYTES
    assert room_for_answer(OVERHEAD_BYTES + PING_BYTES, is_proven=False) == PING_BYTES
    assert PINGS_BACK == MAX_SENT
