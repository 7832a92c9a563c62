"""Which cells a node hosts and which it yields, as tables."""

import pytest

from learning_at_home.directory.announcement import Claim
from learning_at_home.directory.directory import RivalClaim
from learning_at_home.errors import ConfigError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.cells import choose_vacant, claims_of, find_yields, named_cells

PROJECT = ProjectRecord(
    id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 3)), LayerSpec(prefix="ffn1", grid=(4,)))
)
ALICE, BOB = sorted((Identity.generate() for _ in range(2)), key=lambda identity: identity.peer_id)
UID = ExpertUid("ffn0", (0, 1))


def uids(*texts: str) -> list[ExpertUid]:
    return [ExpertUid.parse(text) for text in texts]


def rival(identity: Identity, claimed_ms: int) -> RivalClaim:
    return RivalClaim(identity.public_key, "bob", claimed_ms, ("tcp://127.0.0.1:1",))


@pytest.mark.parametrize(
    "patterns,expected",
    [
        (["ffn0.1.2"], uids("ffn0.1.2")),
        (["ffn0.[0:2].1"], uids("ffn0.0.1", "ffn0.1.1")),
        (["ffn1.[2:4]", "ffn0.0.0", "ffn1.3"], uids("ffn1.2", "ffn1.3", "ffn0.0.0")),
    ],
)
def test_patterns_name_cells_each_once(patterns, expected):
    assert named_cells(PROJECT, patterns) == expected


@pytest.mark.parametrize(
    "pattern,words",
    [
        ("ffn9.0", "--experts ffn9.0: .*no layer 'ffn9'; its layers: ffn0, ffn1"),
        ("ffn0.[0:3].0", "outside the grid 2x3"),
        ("ffn0", "no expert"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(pattern, words):
    with pytest.raises(ConfigError, match=words):
        named_cells(PROJECT, [pattern])


@pytest.mark.parametrize(
    "taken,most,seed,expected",
    [
        ({}, 3, 0, uids("ffn0.0.0", "ffn1.0", "ffn0.0.1")),
        ({"ffn0": frozenset({0, 1})}, 2, 0, uids("ffn0.0.2", "ffn1.0")),
        ({"ffn0": frozenset(range(6))}, 9, 0, uids("ffn1.0", "ffn1.1", "ffn1.2", "ffn1.3")),
        ({}, 2, 5, uids("ffn0.1.2", "ffn1.1")),  # another node begins elsewhere
        ({"ffn0": frozenset(range(6)), "ffn1": frozenset(range(4))}, 9, 0, []),
        ({}, 0, 0, []),
    ],
)
def test_vacant_cells_are_taken_evenly_from_all_layers(taken, most, seed, expected):
    assert choose_vacant(PROJECT, taken, most, seed) == expected


@pytest.mark.parametrize(
    "claimed_ms,reason",
    [
        (None, None),
        (5_000, "bob claimed it 5 s earlier"),
        (9_900, "bob has the older claim"),
        (10_001, None),  # ours is older
        (10_000, None),  # the same moment: the lower node id serves
        (20_000, None),
    ],
)
def test_the_younger_claim_yields_and_says_to_whom(claimed_ms, reason):
    rivals = {} if claimed_ms is None else {1: rival(BOB, claimed_ms)}

    found = find_yields(PROJECT, [UID], 10_000, ALICE.public_key, lambda prefix, cells: rivals)

    assert found == ({} if reason is None else {"ffn0.0.1": reason})


def test_of_two_claims_of_one_moment_the_higher_node_id_yields():
    found = find_yields(PROJECT, [UID], 10_000, BOB.public_key, lambda prefix, cells: {1: rival(ALICE, 10_000)})

    assert list(found) == ["ffn0.0.1"]


def test_only_the_contested_cell_is_yielded():
    contested = {"ffn1": {2: rival(BOB, 1)}}

    found = find_yields(
        PROJECT, uids("ffn1.1", "ffn1.2"), 10_000, ALICE.public_key, lambda prefix, cells: contested[prefix]
    )

    assert list(found) == ["ffn1.2"]


def test_claims_hold_one_entry_per_layer_with_its_spans():
    claims = claims_of(PROJECT, uids("ffn1.3", "ffn0.0.1", "ffn0.0.2", "ffn1.0"), 7)

    assert claims == (Claim("ffn0", ((1, 3),), 7), Claim("ffn1", ((0, 1), (3, 4)), 7))
