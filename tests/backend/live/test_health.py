import pytest

from backend.live.health import (
    DegradedWatch,
    NodeEvidence,
    expert_health,
    is_slow_or_failing,
    median_p95_ms,
    node_health,
)

NOW = 1_000.0
WELL = {"announced_s": NOW - 10, "expires_s": NOW + 50, "answered_s": NOW - 5}


@pytest.mark.parametrize(
    "evidence, state",
    [
        ({}, "offline"),
        ({"socket_open": True}, "joining"),
        pytest.param(WELL | {"answered_s": None}, "joining", id="a claim that nobody checked"),
        (WELL, "online"),
        (WELL | {"announced_state": "paused"}, "paused"),
        (WELL | {"said": "draining"}, "draining"),
        (WELL | {"said": "joining"}, "online"),
        (WELL | {"failures": 1}, "stale"),
        (WELL | {"failures": 2}, "offline"),
        (WELL | {"announced_s": NOW - 29}, "online"),
        pytest.param(WELL | {"announced_s": NOW - 31}, "stale", id="older than its refresh time by half"),
        pytest.param(WELL | {"expires_s": NOW}, "offline", id="its record expired"),
        pytest.param(WELL | {"expires_s": NOW, "socket_open": True}, "stale", id="nobody finds it, but it talks to us"),
        (WELL | {"withdrawn": True}, "offline"),
    ],
)
def test_a_nodes_state_follows_from_the_evidence(evidence, state):
    assert node_health(NodeEvidence(**evidence), NOW) == state


@pytest.mark.parametrize(
    "node, options, health",
    [
        ("online", {}, "serving"),
        ("online", {"degraded": True}, "degraded"),
        ("degraded", {}, "serving"),
        ("stale", {"degraded": True}, "stale"),
        ("paused", {}, "stale"),
        ("draining", {}, "stale"),
        ("offline", {}, "orphaned"),
        ("offline", {"has_checkpoint": True}, "lost"),
        ("online", {"record_expired": True}, "orphaned"),
        ("joining", {}, "orphaned"),
        ("joining", {"hosted_before": False}, "vacant"),
        pytest.param("offline", {"hosted_before": False}, "vacant", id="a claim alone is nothing"),
        ("online", {"hosted_before": False}, "serving"),
    ],
)
def test_an_experts_health_follows_from_its_host(node, options, health):
    known = {"hosted_before": True, "record_expired": False, "degraded": False}

    assert expert_health(node, **(known | options)) == health


@pytest.mark.parametrize(
    "p95_ms, median_ms, calls, failures, bad",
    [
        (None, None, 0, 0, False),
        (40.0, 10.0, 20, 0, False),
        (41.0, 10.0, 20, 0, True),
        (41.0, None, 20, 0, False),
        pytest.param(41.0, 10.0, 3, 0, False, id="one slow probe of an expert at rest"),
        (None, None, 100, 5, False),
        (None, None, 100, 6, True),
        pytest.param(None, None, 3, 1, False, id="too few calls to judge"),
    ],
)
def test_slow_is_four_medians_and_failing_is_five_percent(p95_ms, median_ms, calls, failures, bad):
    assert is_slow_or_failing(p95_ms, median_ms, calls, failures) is bad


@pytest.mark.parametrize(
    "looks, degraded",
    [
        ([(0, True)], False),
        ([(0, True), (29, True)], False),
        ([(0, True), (30, True)], True),
        ([(0, True), (15, False), (31, True)], False),
        ([(0, True), (30, True), (31, False)], False),
    ],
)
def test_only_what_lasts_is_degraded(looks, degraded):
    watch = DegradedWatch()

    assert [watch.update(bad, now) for now, bad in looks][-1] is degraded


def test_a_median_needs_experts_to_stand_out_from():
    assert median_p95_ms([10.0, None, 20.0]) is None
    assert median_p95_ms([10.0, 12.0, 90.0]) == 12.0
