"""The page beside an experiment: each experiment as its process, asked over REST while it runs, and what serves it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from experiments.dashboard import UNSEEN, Curve, Dashboard, virtual_project
from learning_at_home.errors import CoordinatorUnreachable
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.testing import LocalSwarm

PROJECT = ProjectRecord(id="tiny", layers=(LayerSpec(prefix="ffn0", grid=(4,), hidden_size=8),))
WAIT_S = 60.0
SMALL_DIGITS = ["--train-rows", "200", "--test-rows", "100"]
# Each would run for minutes: it is ended as soon as its run is seen.
EXPERIMENTS: dict[str, tuple[list[str], int, str]] = {
    "churn": ([*SMALL_DIGITS, "--nodes", "2", "--in-process", "--steps", "9999", "--killed", "0"], 2, "loss"),
    "language_model": (["--models", "dmoe", "--nodes", "2", "--in-process", "--batches", "9999"], 2, "loss"),
    "throughput_under_latency": (["--nodes", "1", "--layers", "1", "--waves", "999", "--mbit"], 1, "rows_per_s"),
    "failing_calls": ([*SMALL_DIGITS, "--steps", "9999", "--rows", "32"], 4, "loss"),
    "several_trainers": (["--in-process", "--trainers", "1", "--rows", "9999999"], 2, "loss"),
    "convergence": ([*SMALL_DIGITS, "--batches", "9999", "--every", "9999"], 0, "loss"),
    "asynchrony": ([*SMALL_DIGITS, "--batches", "9999", "--every", "9999"], 0, "loss"),
    "finding_experts": (["--nodes", "60", "--others", "9999"], 0, "cold_ms"),
}


def asked(url: str, path: str = "") -> Any:
    return httpx.get(url.replace("/p/", "/api/v1/projects/") + path, timeout=5, trust_env=False).json()


def events(url: str) -> list[str]:
    return [event["text"] for event in asked(url, "/view")["events"]]


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.05)  # asks another process: there is nothing to be woken by
    raise AssertionError(f"after {WAIT_S:g} s it is not so that {what}")


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with Dashboard(0) as dashboard:
        yield dashboard


@pytest.mark.slow
@pytest.mark.timeout(2 * WAIT_S)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_page_shows_a_run_of_each_experiment_while_it_goes(name: str) -> None:
    flags, nodes, metric = EXPERIMENTS[name]
    command = [sys.executable, "-u", "-m", f"experiments.{name}", *flags, "--dashboard", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        late = threading.Timer(WAIT_S, process.kill)  # else nothing ends the wait for its first line
        late.start()
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:
                printed.append(line)
                if found := re.match(r"dashboard: (http://\S+)", line):
                    break
            else:
                raise AssertionError(f"it named no page:\n{''.join(printed)}")
            run = until(lambda: asked(found[1])["run"], "a run is shown")
            project = until(lambda: len(asked(found[1])["run"]["metrics"]) and asked(found[1]), "it reports")
        finally:
            late.cancel()
            process.kill()

    assert run["live"]
    assert metric in project["run"]["metrics"]
    assert project["nodes_online"] == nodes
    assert project["trainers_online"] == 1


@pytest.mark.slow
def test_nodes_join_at_the_coordinator_and_leave_it_in_the_end(dashboard: Dashboard) -> None:
    url = dashboard.serve(PROJECT)
    assert url is not None
    with LocalSwarm(PROJECT, num_nodes=2, in_process=True, coordinator=url) as nodes, nodes.connect("first") as swarm:
        assert swarm.wait_until_alive(timeout_s=WAIT_S) == 4
        assert swarm.dashboard_url == url
        with Curve(swarm.report) as curve:
            curve(1, loss=2.0)
            curve(2, accuracy=0.5)  # too soon to be told now: at the end
        run = until(lambda: (asked(url)["run"] or {}).get("step") == 2 and asked(url)["run"], "both are reported")
        assert (run["name"], run["metrics"]) == ("first", {"loss": 2.0, "accuracy": 0.5})
        until(lambda: events(url).count("serves 2 experts of ffn0") == 2, "both serve")

    until(lambda: events(url).count("left") == 2, "both have said goodbye")
    assert asked(url)["nodes_online"] == 0


@pytest.mark.slow
def test_a_project_that_is_new_or_changed_is_served_beside_the_others(dashboard: Dashboard) -> None:
    simulated = virtual_project("simulated", "Simulated")
    first = dashboard.serve(PROJECT)
    with dashboard.curve(simulated, "a run") as curve:
        curve(7, loss=1.0)
    wider = ProjectRecord(id="tiny", layers=(LayerSpec(prefix="ffn0", grid=(6,), hidden_size=8),))

    assert dashboard.serve(wider) == first
    assert first is not None
    assert asked(first)["experts_total"] == 6
    view = asked(first.replace("tiny", "simulated"), "/view")
    assert (view["runs"][0]["name"], view["runs"][0]["step"]) == ("a run", 7)
    assert view["project"]["description"].startswith("Nodes are simulated")


@pytest.mark.slow
def test_a_coordinator_that_does_not_start_says_why(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.dashboard.HOST", "192.0.2.1")  # nobody's

    with pytest.raises(CoordinatorUnreachable, match=r"192\.0\.2\.1"):
        dashboard.serve(PROJECT)


def test_without_a_dashboard_nothing_is_started_and_nobody_told() -> None:
    with Dashboard(None) as dashboard:
        assert dashboard.serve(PROJECT) is None
        with dashboard.curve(PROJECT, "a run") as curve:
            assert curve is UNSEEN
            curve(1, loss=1.0)


def test_a_curve_is_told_no_more_often_than_it_is_drawn() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    with Curve(lambda step, **metrics: told.append((step, metrics))) as curve:
        for step in range(1, 100):
            curve(step, loss=1.0 / step)
        curve(99, accuracy=0.5)

    assert len(told) < 10
    assert told[0] == (1, {"loss": 1.0})
    assert told[-1] == (99, {"loss": 1.0 / 99, "accuracy": 0.5})
