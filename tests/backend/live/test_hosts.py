"""Who hosts a cell: whoever lives, then the older claim, then the lower node id; clipped to the grid."""

import pytest

from backend.live.hosts import choose_hosts
from backend.live.node_memory import MAX_STRANGER_CLAIMS, NodeMemory
from learning_at_home.identity import Identity, peer_id
from learning_at_home.project import LayerSpec, ProjectRecord
from tests.backend.kit import ALICE, BOB, DIGITS, NOW, announced, answer_probes, expert, new_swarm, telemetry


def node(identity: Identity, state="online", record: ProjectRecord = DIGITS, **claims) -> NodeMemory:
    made = NodeMemory(identity.public_key, NOW)
    made.state, made.ever_answered = state, True
    made.announces(announced(identity, **claims).announcement, record)
    return made


LARGE = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2_048, 2_048)),))
LOWER, HIGHER = sorted((ALICE, BOB), key=lambda each: peer_id(each.public_key))


@pytest.mark.parametrize(
    "first, second",
    [
        (node(HIGHER, claimed_s=NOW - 2), node(LOWER, claimed_s=NOW - 1)),
        (node(LOWER), node(HIGHER)),
        (node(HIGHER, claimed_s=NOW - 1), node(LOWER, "stale", claimed_s=NOW - 2)),
        (node(HIGHER, "degraded", claimed_s=NOW - 1), node(LOWER, "offline", claimed_s=NOW - 2)),
        (node(HIGHER, "stale"), node(LOWER, "draining")),
        (node(HIGHER, "draining"), node(LOWER, "offline")),
    ],
)
def test_of_two_that_claim_a_cell_the_first_hosts_it_in_whatever_order_they_come(first, second):
    for nodes in ([first, second], [second, first]):
        assert set(choose_hosts(nodes).values()) == {first}


def test_a_claim_of_a_node_that_never_answered_is_nothing():
    stranger = node(ALICE)
    stranger.ever_answered = False

    assert choose_hosts([stranger]) == {}


def test_claims_are_clipped_to_the_grids_of_the_project():
    assert list(choose_hosts([node(ALICE, first=14, end=4_000)])) == [("ffn0", 14), ("ffn0", 15)]
    assert choose_hosts([node(ALICE, prefix="other")]) == {}


def test_a_denied_cell_has_no_host_until_it_is_affirmed_or_announced_anew():
    alice = node(ALICE, end=2)
    assert alice.denies(("ffn0", 0), True)
    assert not alice.denies(("ffn0", 0), True)
    assert not alice.denies(("ffn0", 9), True)  # it does not claim it
    assert list(choose_hosts([alice])) == [("ffn0", 1)]

    assert alice.denies(("ffn0", 0), False)
    assert len(choose_hosts([alice])) == 2
    alice.denies(("ffn0", 0), True)
    alice.announces(announced(ALICE, end=3).announcement, DIGITS)
    assert len(choose_hosts([alice])) == 3


def test_of_a_stranger_only_a_few_claims_are_kept_until_it_answers():
    swarm = new_swarm(LARGE)
    swarm.directory_seen([announced(ALICE, end=8_192)], NOW)
    (alice,) = swarm.nodes.values()
    message = telemetry(*(expert(cell, updates=1) for cell in range(200)))
    swarm.node_told(alice, message, NOW)
    assert len(alice.claims) == len(alice.experts) == MAX_STRANGER_CLAIMS

    answer_probes(swarm, NOW)
    assert len(alice.claims) == 8_192
    assert swarm.totals.updates == 200
    swarm.node_told(alice, message, NOW)
    assert swarm.totals.updates == 200


def test_many_claims_of_a_large_grid_cost_one_walk_of_the_cells_that_are_claimed():
    alice = node(ALICE, record=LARGE, end=8_192)

    assert len(alice.claims) == len(choose_hosts([alice])) == 8_192
