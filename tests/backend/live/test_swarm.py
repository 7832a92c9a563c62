import msgspec
import pytest

from backend.live.health import NodeEvidence
from backend.live.portrait import contributors, view
from backend.live.probe_plan import PROBE_EVERY_S
from backend.live.swarm import RESTORED_LIFE_S
from dashboard.view import ExpertHealth
from learning_at_home.directory.announcement import ANNOUNCEMENT_LIFE_S
from tests.backend.kit import (
    ALICE,
    BOB,
    CAROL,
    NOW,
    announced,
    answer_probes,
    expert,
    healths,
    introduce,
    new_swarm,
    report,
    serving_swarm,
    telemetry,
)

FOUR_SERVING = dict.fromkeys(range(4), "serving")


def kinds(swarm) -> list[str]:
    return [event.kind for event in reversed(swarm.events)]


def test_a_claim_lights_no_cell_before_our_probe_is_answered():
    swarm = new_swarm()
    node = introduce(swarm, ALICE, NOW)
    swarm.node_told(node, telemetry(expert()), NOW)
    swarm.directory_seen([announced(ALICE)], NOW)
    swarm.advance(NOW)
    assert healths(swarm) == {}
    assert node.state == "joining"

    assert answer_probes(swarm, NOW) == 1
    swarm.advance(NOW)
    assert healths(swarm) == FOUR_SERVING
    assert kinds(swarm) == ["joined", "serving"]


def test_a_node_without_telemetry_is_watched_by_its_announcement_alone():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE)], NOW)
    answer_probes(swarm, NOW)
    swarm.advance(NOW)

    assert healths(swarm) == FOUR_SERVING


def test_a_dropped_socket_and_two_silent_probes_orphan_the_experts():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_socket_lost(node, NOW + 1)
    assert answer_probes(swarm, NOW + 1, answered=False) == 1
    swarm.advance(NOW + 1)
    assert healths(swarm) == dict.fromkeys(range(4), "stale")

    assert answer_probes(swarm, NOW + 2, answered=False) == 1
    swarm.advance(NOW + 2)
    assert healths(swarm) == dict.fromkeys(range(4), "orphaned")
    assert node.state == "offline"
    assert kinds(swarm)[-2:] == ["left", "orphaned"]
    assert swarm.events[0].text == "has 4 experts of ffn0 orphaned: no checkpoint exists"


def test_a_dropped_socket_of_a_node_that_answers_changes_nothing():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_socket_lost(node, NOW + 1)
    answer_probes(swarm, NOW + 1)
    swarm.advance(NOW + 1)

    assert healths(swarm) == FOUR_SERVING


def test_a_silent_socket_is_probed_after_eight_seconds():
    swarm = serving_swarm()
    assert answer_probes(swarm, NOW + 7.9) == 0

    assert answer_probes(swarm, NOW + 8.0, answered=False) == 1
    assert answer_probes(swarm, NOW + 9.0, answered=False) == 1
    swarm.advance(NOW + 9)
    assert healths(swarm) == dict.fromkeys(range(4), "orphaned")


def test_a_node_that_comes_back_lights_its_cells_again():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_socket_lost(node, NOW)
    assert answer_probes(swarm, NOW, answered=False) == 1
    assert answer_probes(swarm, NOW + 1, answered=False) == 1
    swarm.advance(NOW + 1)
    assert answer_probes(swarm, NOW + 2) == 0

    node = introduce(swarm, ALICE, NOW + 20)
    swarm.node_told(node, telemetry(expert()), NOW + 20)
    assert answer_probes(swarm, NOW + 20) == 1
    swarm.advance(NOW + 20)
    assert healths(swarm) == FOUR_SERVING


def test_a_goodbye_is_no_failure_but_leaves_orphans():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(state="draining"), NOW + 1)
    swarm.node_socket_lost(node, NOW + 1, in_order=True)
    swarm.advance(NOW + 1)

    assert answer_probes(swarm, NOW + 1) == 0
    assert healths(swarm) == dict.fromkeys(range(4), "orphaned")
    assert "left" in [event.text for event in swarm.events]


def test_a_node_that_connects_once_more_on_its_way_out_has_still_left():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(state="draining"), NOW + 1)
    swarm.node_socket_lost(node, NOW + 1, in_order=True)
    introduce(swarm, ALICE, NOW + 1.2)
    swarm.node_told(node, telemetry(state="draining"), NOW + 1.2)
    swarm.node_socket_lost(node, NOW + 1.3)
    swarm.advance(NOW + 1.3)
    assert answer_probes(swarm, NOW + 1.3) == 0
    assert set(healths(swarm).values()) == {"orphaned"}

    introduce(swarm, ALICE, NOW + 30)
    swarm.node_told(node, telemetry(expert()), NOW + 30)
    answer_probes(swarm, NOW + 30)
    swarm.advance(NOW + 30)
    assert node.state == "online"


def test_a_withdrawn_announcement_orphans_at_once():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE)], NOW)
    answer_probes(swarm, NOW)
    swarm.advance(NOW)
    swarm.directory_seen([], NOW + 1)
    swarm.advance(NOW + 1)

    assert healths(swarm) == dict.fromkeys(range(4), "orphaned")


@pytest.mark.parametrize("later_s, health", [(29.0, "serving"), (31.0, "stale"), (61.0, "orphaned")])
def test_an_announcement_that_is_not_renewed_ages(later_s, health):
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE)], NOW)
    answer_probes(swarm, NOW)
    swarm.advance(NOW)
    swarm.advance(NOW + later_s)

    assert set(healths(swarm).values()) == {health}


def test_of_two_claims_the_older_one_hosts_and_the_other_takes_over_when_it_dies():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE, claimed_s=NOW - 10), announced(BOB, claimed_s=NOW - 20)], NOW)
    answer_probes(swarm, NOW)
    swarm.advance(NOW)
    assert {cell.host.id for cell in swarm.cells.values()} == {BOB.public_key.hex()}

    bob = swarm.nodes[BOB.public_key.hex()]
    swarm.node_socket_lost(bob, NOW + 1)
    for now in (NOW + 1, NOW + 2):
        for target in swarm.due_probes(now, lambda cells: cells[0]):
            swarm.probed(target.node, target.cell, now, answered=target.node is not bob, hosts_it=True, jitter=0)
    swarm.advance(NOW + 2)
    swarm.advance(NOW + 2)
    assert {cell.host.id for cell in swarm.cells.values()} == {ALICE.public_key.hex()}
    assert healths(swarm) == FOUR_SERVING


def test_a_cell_that_its_node_denies_is_not_serving_until_it_is_announced_anew():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE, end=2)], NOW)
    answer_probes(swarm, NOW, hosts_it=False)
    swarm.advance(NOW)
    assert healths(swarm) == {1: "serving"}

    swarm.directory_seen([announced(ALICE, end=3, at_s=NOW + 5)], NOW + 5)
    answer_probes(swarm, NOW + 5)
    swarm.advance(NOW + 5)
    assert set(healths(swarm).values()) == {"serving"}


def test_a_cell_that_is_dropped_by_a_living_node_is_orphaned():
    swarm = serving_swarm()
    swarm.directory_seen([announced(ALICE, end=3, at_s=NOW + 5)], NOW + 5)
    swarm.advance(NOW + 5)

    assert healths(swarm) == {0: "serving", 1: "serving", 2: "serving", 3: "orphaned"}


def test_claims_outside_the_grid_and_of_foreign_layers_are_ignored():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE, first=14, end=1_000), announced(BOB, prefix="other")], NOW)
    answer_probes(swarm, NOW)
    swarm.advance(NOW)

    assert healths(swarm) == {14: "serving", 15: "serving"}


def test_a_slow_expert_is_degraded_after_thirty_seconds_and_its_node_too():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    for second in (1, 2, 10, 20, 33):
        experts = [expert(cell, calls=50 * second, p95_ms=100.0 if cell == 3 else 10.0) for cell in range(4)]
        swarm.directory_seen([announced(ALICE, at_s=NOW + second)], NOW + second)
        swarm.node_told(node, telemetry(*experts), NOW + second)
        answer_probes(swarm, NOW + second)
        swarm.advance(NOW + second)

    assert healths(swarm) == {0: "serving", 1: "serving", 2: "serving", 3: "degraded"}
    assert node.state == "degraded"
    assert swarm.events[0].text == "is degraded: slow or failing for 30 s"


def test_how_stale_a_nodes_updates_are_is_on_its_row():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    (row,) = view(swarm, "http://here", NOW).nodes
    assert (row.staleness_p50, row.staleness_max) == (None, None)

    swarm.node_told(node, telemetry(expert(0, updates=10), staleness=(2, 17)), NOW + 1)

    (row,) = view(swarm, "http://here", NOW + 1).nodes
    assert (row.staleness_p50, row.staleness_max) == (2, 17)


def test_totals_outlive_a_restart_of_the_node():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(expert(0, updates=10), expert(1, updates=5)), NOW + 1)
    swarm.node_told(node, telemetry(expert(0, updates=2), started_s=NOW + 2), NOW + 3)

    assert swarm.totals.updates == 17


def test_experts_that_the_project_lacks_count_for_nothing():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(expert(16, updates=10), expert(0, prefix="other", updates=5)), NOW + 1)

    assert swarm.totals.updates == 0
    assert node.experts == {}


def test_experts_that_a_node_does_not_announce_count_for_nothing_and_are_not_kept():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    for start in range(0, 12, 4):  # another set each time
        swarm.node_told(node, telemetry(*(expert(cell, updates=10) for cell in range(start, start + 4))), NOW + 1)

    assert swarm.totals.updates == 40
    assert node.experts == {}
    assert node.telemetry is not None
    assert len(node.telemetry.experts) == 4


def test_experts_told_of_before_they_are_announced_count_as_soon_as_they_are():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(*(expert(cell, updates=10) for cell in range(6))), NOW + 1)
    swarm.directory_seen([announced(ALICE, end=6, at_s=NOW + 2)], NOW + 2)
    assert swarm.totals.updates == 60

    swarm.node_told(node, telemetry(*(expert(cell, updates=11) for cell in range(6))), NOW + 3)
    assert swarm.totals.updates == 66


def test_an_expert_that_is_told_of_again_is_not_counted_again():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    for updates in (10, None, 12):
        told = telemetry(*([expert(0, updates=updates)] if updates is not None else []))
        swarm.node_told(node, told, NOW + 1)

    assert swarm.totals.updates == 12


def test_one_message_adds_no_more_than_can_be():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    swarm.node_told(node, telemetry(expert(0, updates=10**15, flop=1e27)), NOW + 1)

    assert (swarm.totals.updates, swarm.totals.flop) == (10**12, 1e21)


def test_notices_are_told_of_nodes_that_answered_and_only_a_few():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    for number in range(100):
        swarm.node_told(node, msgspec.structs.replace(telemetry(), notice=f"{number}"), NOW + 1)

    assert 0 < kinds(swarm).count("notice") <= 10


def test_a_flapping_node_fills_no_event_list():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    for number in range(1, 101):
        swarm.node_told(node, telemetry(state="offline" if number % 2 else "online"), NOW + number / 10)
        answer_probes(swarm, NOW + number / 10)
        swarm.advance(NOW + number / 10)

    assert len(swarm.events) <= 12


def test_who_is_gone_when_the_coordinator_is_back_is_suspected_while_its_last_announcement_may_live():
    """Also when nobody tells the coordinator of that announcement: others may have it."""
    (node,) = serving_swarm().nodes.values()
    swarm = new_swarm()
    swarm.restore_node(node, NOW + 1)
    assert swarm.vanished(NOW + 1) == {}
    answer_probes(swarm, NOW + 3, answered=False)

    assert swarm.vanished(NOW + 1 + RESTORED_LIFE_S + 1) == {ALICE.public_key: NOW + 3}
    assert swarm.vanished(NOW + 3 + ANNOUNCEMENT_LIFE_S) == {}


def test_who_was_gone_before_the_coordinator_stopped_is_suspected_still_and_welcome_again():
    (node,) = serving_swarm().nodes.values()
    node.state, node.since_s, node.evidence = "offline", NOW, NodeEvidence()
    swarm = new_swarm()
    swarm.restore_node(node, NOW + 10)
    swarm.advance(NOW + 10)
    assert swarm.vanished(NOW + 10) == {ALICE.public_key: NOW}
    assert answer_probes(swarm, NOW + 11) == 0

    swarm.directory_seen([announced(ALICE, at_s=NOW + 20)], NOW + 21)
    assert answer_probes(swarm, NOW + 22) == 1
    swarm.advance(NOW + 22)
    assert swarm.vanished(NOW + 22) == {}
    assert healths(swarm) == FOUR_SERVING


def test_strangers_that_never_answered_are_forgotten_with_their_socket_and_announcement():
    swarm = new_swarm()
    node = introduce(swarm, CAROL, NOW)
    swarm.node_socket_lost(node, NOW)
    assert swarm.nodes == {}

    swarm.directory_seen([announced(BOB)], NOW)
    swarm.advance(NOW + 59)
    assert len(swarm.nodes) == 1
    swarm.advance(NOW + 61)
    assert swarm.nodes == {}


def test_probes_go_on_every_fifteen_seconds_for_each_node():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE), announced(BOB, first=4, end=8)], NOW)
    assert answer_probes(swarm, NOW) == 2
    assert answer_probes(swarm, NOW + PROBE_EVERY_S - 1) == 0
    assert answer_probes(swarm, NOW + PROBE_EVERY_S) == 2


def test_the_view_shows_cells_nodes_runs_and_the_one_thing_that_is_wrong():
    swarm = serving_swarm()
    (node,) = swarm.nodes.values()
    trainer = swarm.trainer_introduced(CAROL.public_key, "carol-trains", NOW)
    swarm.trainer_reported(trainer, report(1, loss=2.5), NOW)
    swarm.trainer_reported(trainer, report(2, loss=2.0), NOW + 1)
    for second in (1, 6):
        rows = 100 * second
        swarm.node_told(node, telemetry(expert(0, rows_forward=rows), expert(1, rows_forward=rows // 2)), NOW + second)
    drawn = view(swarm, "http://here", NOW + 6)

    layer = drawn.layers[0]
    assert [cell.health for cell in layer.cells].count("vacant") == 12
    assert (layer.cells[0].load, layer.cells[1].load) == (1.0, 0.5)
    assert layer.cells[0].node == node.id
    assert drawn.tiles.rows_per_s == pytest.approx(150)
    assert drawn.nodes[0].experts == 4
    assert drawn.charts["loss"].lines == {"loss": (2.5, 2.0)}
    assert (drawn.runs[0].name, drawn.runs[0].trainer, drawn.runs[0].live) == ("first", "carol-trains", True)
    assert drawn.project.url == "http://here/p/digits"
    assert drawn.verdict.level == "degraded"
    assert drawn.verdict.detail == "Nobody serves layer ffn1."


@pytest.mark.parametrize(
    "counts, unserved, level",
    [
        ({}, ("ffn0",), "empty"),
        ({"serving": 32}, (), "healthy"),
        ({"serving": 31, "stale": 1}, (), "healthy"),
        ({"serving": 28, "orphaned": 4}, (), "degraded"),
        ({"serving": 16}, ("ffn1",), "degraded"),
        ({"serving": 16, "orphaned": 16}, ("ffn1",), "critical"),
        ({"orphaned": 4}, ("ffn0", "ffn1"), "critical"),
    ],
)
def test_the_verdict_follows_from_the_counts(counts: dict[ExpertHealth, int], unserved, level):
    from backend.live.verdict import judge

    verdict = judge(counts, experts_total=32, nodes_online=4, unserved_layers=unserved, worst_node=None)

    assert verdict.level == level


def test_a_project_without_layers_waits_for_nobody():
    from backend.live.verdict import judge

    verdict = judge({}, experts_total=0, nodes_online=0, unserved_layers=(), worst_node=None)

    assert (verdict.level, verdict.headline) == ("empty", "This project has no layers.")


def test_contributors_are_those_who_answered_us_the_most_generous_first():
    swarm = new_swarm()
    swarm.directory_seen([announced(ALICE), announced(BOB, first=4, end=8)], NOW)
    answer_probes(swarm, NOW)
    introduce(swarm, CAROL, NOW)
    bob = introduce(swarm, BOB, NOW)
    swarm.node_told(bob, telemetry(expert(4, flop=1e9)), NOW)

    assert [each.name for each in contributors(swarm)] == [BOB.name, ALICE.name]
