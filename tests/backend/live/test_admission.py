"""Who is remembered when keys are many: those who gave something, and those who are here."""

from backend.live.admission import MAX_JOINING_SHOWN, make_room, shown
from backend.live.node_memory import NodeMemory
from backend.live.portrait import view
from backend.live.rates import Counters
from tests.backend.kit import ALICE, BOB, CAROL, NOW, announced, introduce, new_swarm, serving_swarm, telemetry


def node(number: int, *, answered: bool = True, here: bool = False, flop: float = 0.0, since_s: float = 0.0):
    made = NodeMemory(number.to_bytes(32, "big"), NOW + number)
    made.ever_answered, made.evidence.socket_open = answered, here
    made.state, made.since_s, made.totals = "online" if here else "offline", since_s, Counters(flop=flop)
    return made


def room_in(*nodes: NodeMemory, max_nodes: int = 3, max_strangers: int = 3) -> tuple[bool, list[NodeMemory]]:
    """Whether there is room, and who was forgotten for it."""
    by_id = {each.id: each for each in nodes}
    room = make_room(by_id, max_nodes, max_strangers)
    return room, [each for each in nodes if each.id not in by_id]


def test_while_there_is_room_nobody_is_forgotten():
    assert room_in(node(1), node(2)) == (True, [])


def test_a_stranger_goes_before_all_who_answered():
    stranger = node(3, answered=False, since_s=99)

    assert room_in(node(1), node(2), stranger) == (True, [stranger])


def test_then_the_one_that_gave_least_and_then_the_one_that_is_away_for_longest():
    generous, older, newer = node(1, flop=9.0, since_s=1), node(2, since_s=2), node(3, since_s=3)

    assert room_in(generous, newer, older) == (True, [older])
    assert room_in(node(4, flop=99.0, since_s=0), generous, node(5, here=True)) == (True, [generous])


def test_when_all_are_here_there_is_no_room():
    assert room_in(*(node(number, here=True) for number in range(3))) == (False, [])


def test_strangers_have_a_bound_of_their_own():
    first, second = node(1, answered=False), node(2, answered=False)

    assert room_in(second, first, max_nodes=99, max_strangers=2) == (True, [first])
    here = [node(number, answered=False, here=True) for number in range(2)]
    assert room_in(*here, max_nodes=99, max_strangers=2) == (False, [])


def test_strangers_are_shown_while_they_join_and_only_a_few_of_them():
    swarm = serving_swarm()
    introduce(swarm, BOB, NOW)
    swarm.advance(NOW)
    assert {(row.id, row.state) for row in view(swarm, "", NOW).nodes} == {
        (ALICE.public_key.hex(), "online"),
        (BOB.public_key.hex(), "joining"),
    }

    joining = [node(number, answered=False) for number in range(200)]
    for each in joining:
        each.state = "joining"
    assert shown(joining) == list(reversed(joining))[:MAX_JOINING_SHOWN]
    assert shown([node(1, answered=False)]) == []


def test_what_a_stranger_says_counts_for_nothing_and_is_no_event():
    swarm = new_swarm()
    bob = introduce(swarm, BOB, NOW)
    message = telemetry()
    swarm.node_told(bob, type(message)(**{**as_dict(message), "notice": "buy my watches"}), NOW)

    assert swarm.totals == Counters()
    assert list(swarm.events) == []


def as_dict(message) -> dict:
    return {name: getattr(message, name) for name in message.__struct_fields__}


def test_the_host_of_an_orphan_may_be_forgotten_while_its_cell_is_judged():
    swarm = serving_swarm()
    alice = swarm.nodes[ALICE.public_key.hex()]
    swarm.node_told(alice, telemetry(state="offline"), NOW + 1)
    del swarm.nodes[alice.id]
    swarm.directory_seen([announced(CAROL, first=8, end=9)], NOW + 1)
    swarm.advance(NOW + 100)

    assert view(swarm, "", NOW + 100).layers[0].cells[0].health == "orphaned"
