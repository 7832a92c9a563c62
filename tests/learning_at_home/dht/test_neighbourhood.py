"""Whom a peer tells of when it is asked for many targets."""

import random

import pytest
from kademlia.node import Node
from kademlia.routing import RoutingTable

from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.neighbourhood import Neighbourhood

OWN_ID = bytes(20)


class NobodyToPing:
    def call_ping(self, node: Node) -> None:
        raise AssertionError("no bucket is full")


@pytest.fixture
def neighbourhood() -> Neighbourhood:
    """Of thirty contacts."""
    known = Neighbourhood(OWN_ID, RoutingTable(NobodyToPing(), 40, Node(OWN_ID)), BlockLimits(one_block=True))
    chance = random.Random(1)
    for port in range(1, 31):
        assert known.answered(Contact(chance.randbytes(32), "20.0.0.1", port), now=0.0)
    return known


def test_the_nearest_to_each_target_come_first_then_the_second_nearest(neighbourhood: Neighbourhood):
    targets = [contact.node_id for contact in neighbourhood.contacts()[:5]]

    told = neighbourhood.closest_to_any(targets, 20, 8, now=0.0)

    assert [contact.node_id for contact in told[:5]] == targets
    seconds = [neighbourhood.closest(target, 2, now=0.0)[1] for target in targets]
    assert set(told[5:]) <= set(seconds)
    assert len(set(told)) == len(told) == 8


def test_of_one_target_the_order_is_that_of_distance(neighbourhood: Neighbourhood):
    target = b"t" * 20

    assert neighbourhood.closest_to_any([target], 20, 100, now=0.0) == neighbourhood.closest(target, 20, now=0.0)


def test_where_there_is_room_for_everyone_all_are_told_but_the_silent(neighbourhood: Neighbourhood):
    silent = neighbourhood.contacts()[3]
    neighbourhood.overdue(silent.address, now=0.0)

    told = neighbourhood.closest_to_any([b"t" * 20, b"u" * 20], 20, 50, now=1.0)

    assert set(told) == set(neighbourhood.contacts()) - {silent}
