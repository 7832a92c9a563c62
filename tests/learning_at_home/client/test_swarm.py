"""Joining a swarm over a real DHT, with a coordinator and without; reports, statistics, leaving."""

import asyncio
import copy
import gc
import math
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

import pytest
import torch

from learning_at_home.client import reporting
from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.reporting import LAST_WORDS_S, ReportQueue
from learning_at_home.client.swarm import Swarm
from learning_at_home.coordinator_messages import Introduction, Mirrored, Report, TrainerTelemetry
from learning_at_home.directory import directory
from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.directory.coordinator_suspicion import sign_suspicion
from learning_at_home.directory.layer_walk import PrefixReader, Walked
from learning_at_home.errors import (
    BootstrapFailed,
    ConfigError,
    CoordinatorUnreachable,
    NotEnoughExperts,
    UnknownLayer,
    UnknownProject,
    UsageError,
)
from learning_at_home.identity import Identity
from learning_at_home.project import ProjectRecord
from tests.learning_at_home.client.small_coordinator import SmallCoordinator
from tests.learning_at_home.client.small_swarm import FROZEN, WilfulNode, layer, twice

PROJECT = ProjectRecord(id="test", title="A test", layers=(layer(optimizer=FROZEN),))


@pytest.fixture
def coordinator() -> Iterator[SmallCoordinator]:
    coordinator = SmallCoordinator(PROJECT)
    yield coordinator
    coordinator.close()


@pytest.fixture
def alice(coordinator: SmallCoordinator) -> Iterator[WilfulNode]:
    """A node that serves cells 0 to 2 of the four and has announced so."""
    identity = Identity.generate()
    node = WilfulNode(identity, PROJECT, twice)
    now_ms = int(time.time() * 1000)
    announcement = Announcement(
        project="test",
        name="alice",
        endpoints=(f"tcp://127.0.0.1:{node.server.port}",),
        state="online",
        claims=(Claim("ffn0", ((0, 3),), now_ms),),
        issued_ms=now_ms,
    )
    coordinator.announce(identity, announcement)
    yield node
    node.stop()


def swarm_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "swarm"]


def rows() -> torch.Tensor:
    return torch.randn(3, 6, dtype=torch.float64)


def test_by_a_coordinators_address(coordinator, alice):
    with Swarm.connect(coordinator.url) as swarm:
        x = rows()
        torch.testing.assert_close(swarm.expert("ffn0.0.1")(x), 2 * x)
        torch.testing.assert_close(DMoE(swarm, layer="ffn0", k_best=2)(x), 2 * x)
        assert swarm.project == PROJECT
        assert [spec.prefix for spec in swarm.layers] == ["ffn0"]
        assert swarm.layer("ffn0").num_alive == 3
        assert swarm.dashboard_url == coordinator.url
        assert "test, connected" in repr(swarm)
        with pytest.raises(UnknownLayer):
            swarm.layer("ffn1")
    assert swarm_threads() == []


def test_by_bootstrap_peers_alone_the_record_comes_from_the_dht(coordinator, alice):
    coordinator.publish_project()
    key = coordinator.identity.public_key.hex()

    with Swarm.connect(bootstrap=[coordinator.bootstrap], project="test", coordinator_key=key) as swarm:
        assert swarm.project == PROJECT
        assert swarm.dashboard_url is None
        x = rows()
        torch.testing.assert_close(swarm.expert("ffn0.0.1")(x), 2 * x)
        swarm.report(1, loss=1.0)


def test_by_bootstrap_peers_and_a_record_or_its_file(coordinator, tmp_path):
    file = tmp_path / "project.toml"
    file.write_text('id = "test"\n[[layers]]\nprefix = "ffn0"\ngrid = [2, 2]\narchitecture = "ffn"\nhidden_size = 6\n')

    for project in (PROJECT, file, str(file)):
        with Swarm.connect(bootstrap=[coordinator.bootstrap], project=project) as swarm:
            assert swarm.project.id == "test"


def test_of_a_layer_too_large_to_be_read_whole_the_best_experts_are_looked_for(coordinator, alice, monkeypatch):
    async def read_nothing(reader: PrefixReader) -> Walked:
        return Walked(answered=True, whole=False)

    monkeypatch.setattr(directory, "walk_layer", read_nothing)
    with Swarm.connect(coordinator.url) as swarm:
        x = rows()
        assert swarm.layer("ffn0").num_alive == 0
        torch.testing.assert_close(DMoE(swarm, layer="ffn0", k_best=2)(x), 2 * x)
        assert swarm.layer("ffn0").num_alive == 3


def test_a_node_that_answers_is_back_though_the_coordinator_suspects_it(coordinator, alice):
    with Swarm.connect(coordinator.url) as swarm:
        (announced,) = swarm.calls.directory.all_announcements()
        now_ms = int(time.time() * 1000)
        suspicion = sign_suspicion(
            coordinator.identity, "test", announced.public_key, now_ms + 5_000, sequence=now_ms
        )  # later than the announcement and than any answer until now
        swarm._mirror.opened(coordinator.identity.public_key)
        swarm._mirror.heard(Mirrored(0, True, 0.0, (suspicion.to_bytes(),)))

        assert swarm.wait_until_alive("ffn0", 3, timeout_s=10) == 3
        assert [work.operation for work in alice.seen] == ["forward"]


def test_two_swarms_in_one_process(coordinator, alice):
    x = rows()
    with Swarm.connect(coordinator.url) as one, Swarm.connect(coordinator.url, run="second") as two:
        torch.testing.assert_close(one.expert("ffn0.0.0")(x), two.expert("ffn0.0.0")(x))
        assert one.identity.public_key != two.identity.public_key
        one.close()
        torch.testing.assert_close(two.expert("ffn0.0.0")(x), 2 * x)


async def test_inside_a_running_event_loop(coordinator, alice):
    assert asyncio.get_running_loop().is_running()
    with Swarm.connect(coordinator.url) as swarm:
        x = rows()
        torch.testing.assert_close(swarm.expert("ffn0.0.0")(x), 2 * x)


def test_close_is_idempotent_and_calls_after_it_are_refused(coordinator, alice):
    swarm = Swarm.connect(coordinator.url)
    swarm.close()
    swarm.close()

    assert swarm_threads() == []
    assert "closed" in repr(swarm)
    with pytest.raises(UsageError, match="closed"):
        swarm.expert("ffn0.0.0")(rows())
    swarm.report(1, loss=1.0)


def test_a_swarm_that_is_forgotten_closes_itself(coordinator):
    swarm = Swarm.connect(coordinator.url)
    assert swarm_threads() == ["swarm"]
    del swarm
    gc.collect()

    assert swarm_threads() == []


def test_an_expert_keeps_its_swarm(coordinator, alice):
    expert = Swarm.connect(coordinator.url).expert("ffn0.0.0")
    gc.collect()
    x = rows()
    torch.testing.assert_close(expert(x), 2 * x)

    del expert
    gc.collect()
    assert swarm_threads() == []


@pytest.mark.slow
def test_a_program_that_never_closes_its_swarm_still_ends(coordinator):
    code = f"import learning_at_home as lah\nswarm = lah.Swarm.connect({coordinator.url!r})\nprint(swarm.project.id)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "test\n", "")


def test_waiting_until_experts_are_alive(coordinator, alice):
    with Swarm.connect(coordinator.url) as swarm:
        assert swarm.wait_until_alive(num_experts=3, timeout_s=5.0) == 3
        assert swarm.wait_until_alive("ffn0", fraction=0.5, timeout_s=5.0) == 3
        with pytest.raises(NotEnoughExperts, match=r"layer ffn0 has 3 of 4 experts alive \(nobody serves ffn0\.1\.1\)"):
            swarm.wait_until_alive(timeout_s=0.1)


def test_reports_and_telemetry_reach_the_coordinator(coordinator, alice):
    with Swarm.connect(coordinator.url, run="first try") as swarm:
        introduction = coordinator.next_said(Introduction)
        assert introduction.role == "trainer"
        assert introduction.public_key == swarm.identity.public_key.hex()
        swarm.expert("ffn0.0.0")(rows())
        swarm.report(7, loss=torch.tensor(0.5, requires_grad=True), accuracy=0.25, bad=math.nan, worse=-math.inf)

        assert coordinator.next_said(Report) == Report("first try", 7, {"loss": 0.5, "accuracy": 0.25})
        while (telemetry := coordinator.next_said(TrainerTelemetry)).calls == 0:
            pass
        assert (telemetry.calls, telemetry.failures, telemetry.rows) == (1, 0, 3)
        assert telemetry.p50_ms is not None


def test_the_last_reports_are_sent_on_close(coordinator):
    with Swarm.connect(coordinator.url) as swarm:
        coordinator.next_said(TrainerTelemetry)
        for step in range(50):
            swarm.report(step, loss=1.0)

    assert [coordinator.next_said(Report).step for _ in range(50)] == list(range(50))


def test_a_run_may_be_named_anew_and_its_name_is_cut(coordinator):
    with Swarm.connect(coordinator.url, run="first") as swarm:
        swarm.report(1, loss=1.0)
        swarm.run = "x" * 100
        swarm.report(2, loss=1.0)
        assert [coordinator.next_said(Report).run for _ in range(2)] == ["first", "x" * 80]


def test_a_program_that_ends_before_its_connection_is_made_is_heard(coordinator):
    for step in range(5):
        with Swarm.connect(coordinator.url) as swarm:
            swarm.report(step, loss=1.0)
        assert coordinator.next_said(Report).step == step


def test_a_coordinator_that_is_silent_does_not_hold_up_the_end(coordinator):
    with Swarm.connect(coordinator.url) as swarm:
        coordinator.next_said(TrainerTelemetry)
        coordinator.stop_web()
        with socket.create_server(("127.0.0.1", coordinator.port)) as silent:
            silent.settimeout(30)
            caller, _ = silent.accept()  # the trainer comes again, and is not answered
            swarm.report(1, loss=1.0)
            began_s = time.monotonic()
            swarm.close()
            took_s = time.monotonic() - began_s
            caller.close()

    assert LAST_WORDS_S <= took_s < LAST_WORDS_S + 2.0


@pytest.mark.parametrize("metrics", [{"loss": "high"}, {"loss": torch.ones(2)}, {f"m{i}": 1.0 for i in range(17)}])
def test_what_is_no_report_is_refused(coordinator, metrics):
    with Swarm.connect(coordinator.url) as swarm:
        with pytest.raises(UsageError):
            swarm.report(1, **metrics)
        with pytest.raises(UsageError):
            swarm.report(-1, loss=1.0)


def test_without_the_coordinator_training_goes_on_and_reports_catch_up(coordinator, alice):
    with Swarm.connect(coordinator.url) as swarm:
        coordinator.next_said(TrainerTelemetry)
        coordinator.stop_web()
        x = rows()
        for step in range(3):
            torch.testing.assert_close(swarm.expert("ffn0.0.0")(x), 2 * x)
            swarm.report(step, loss=float(step))
        coordinator.start_web()

        assert [coordinator.next_said(Report).step for _ in range(3)] == [0, 1, 2]


def test_a_coordinator_that_refuses_or_is_another_disturbs_nobody(coordinator, alice):
    coordinator.refuse = True
    with Swarm.connect(coordinator.url) as swarm:
        coordinator.next_said(Introduction)
        x = rows()
        torch.testing.assert_close(swarm.expert("ffn0.0.0")(x), 2 * x)

    coordinator.shown_key = Identity.generate().public_key.hex()
    with Swarm.connect(coordinator.url) as swarm:
        torch.testing.assert_close(swarm.expert("ffn0.0.0")(x), 2 * x)
    while not coordinator.said.empty():
        said = coordinator.said.get()
        assert isinstance(said, Introduction), "the first swarm tries again"
        assert said.public_key != swarm.identity.public_key.hex()


def test_with_the_coordinator_down_bootstrap_peers_are_enough(coordinator, alice, caplog):
    coordinator.publish_project()
    coordinator.stop_web()

    with Swarm.connect(coordinator.url, bootstrap=[coordinator.bootstrap]) as swarm:
        assert swarm.layer("ffn0").num_alive == 3
        assert "going on with the bootstrap peers" in caplog.text


def test_a_wrong_clock_is_corrected_by_the_coordinators(coordinator, caplog):
    coordinator.ahead_s = 60.0
    with Swarm.connect(coordinator.url) as swarm:
        assert swarm.calls.clock.wall_s() - time.time() == pytest.approx(60.0, abs=2.0)
    assert "clock differs by 60 s" in caplog.text


def test_errors_of_connecting_say_what_to_do(coordinator, free_tcp_port, free_udp_port, tmp_path):
    nobody = f"http://127.0.0.1:{free_tcp_port}/p/test"
    root = coordinator.url.removesuffix("/p/test")
    with pytest.raises(CoordinatorUnreachable, match="is the coordinator running"):
        Swarm.connect(nobody)
    with pytest.raises(UnknownProject, match="'other'"):
        Swarm.connect(f"{root}/p/other")
    with pytest.raises(ConfigError, match=r"coordinator\.example"):
        Swarm.connect("coordinator:8080")
    with pytest.raises(ConfigError, match="no way into the swarm"):
        Swarm.connect(project="test")
    with pytest.raises(ConfigError, match="which project"):
        Swarm.connect(bootstrap=["127.0.0.1:1"])
    with pytest.raises(ConfigError, match=r"bootstrap=\['127"):
        Swarm.connect(bootstrap="127.0.0.1:1", project="test")
    with pytest.raises(ConfigError, match="already names"):
        Swarm.connect(coordinator.url, project="test")
    with pytest.raises(ConfigError, match="coordinator_key"):
        Swarm.connect(bootstrap=["127.0.0.1:1"], project="test", coordinator_key="abc")
    with pytest.raises(ConfigError, match="no-such"):
        Swarm.connect(bootstrap=["127.0.0.1:1"], project=tmp_path / "no-such.toml")
    with pytest.raises(BootstrapFailed, match=str(free_udp_port)):
        Swarm.connect(bootstrap=[f"127.0.0.1:{free_udp_port}"], project=PROJECT)
    with pytest.raises(UnknownProject):
        Swarm.connect(bootstrap=[coordinator.bootstrap], project="unheard-of")
    coordinator.body = b"<html>"
    with pytest.raises(CoordinatorUnreachable, match="not answer as a coordinator does"):
        Swarm.connect(coordinator.url)
    assert swarm_threads() == []


def test_a_coordinator_with_another_key_than_the_one_meant_is_refused(coordinator):
    key = coordinator.identity.public_key.hex()
    with Swarm.connect(coordinator.url, coordinator_key=key.upper()) as swarm:
        assert swarm.project == PROJECT

    with pytest.raises(ConfigError, match=f"has the key {key}, not coordinator_key=0000"):
        Swarm.connect(coordinator.url, coordinator_key=bytes(32), bootstrap=[coordinator.bootstrap])


def test_no_proxy_stands_between_a_trainer_and_a_coordinator_on_its_machine(coordinator, monkeypatch):
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")

    with Swarm.connect(coordinator.url):
        assert coordinator.next_said(Introduction).role == "trainer"


def test_a_report_that_comes_while_another_is_struck_off_costs_no_third(monkeypatch):
    monkeypatch.setattr(reporting, "MAX_QUEUED_REPORTS", 2)
    first, second, third = (Report("run", step, {}) for step in range(3))
    queue = ReportQueue()

    class Interrupted(deque[Report]):
        """Whoever looks at the oldest report is interrupted by a put, if nothing keeps it off."""

        def __getitem__(self, index):
            oldest = super().__getitem__(index)
            putting.start()
            putting.join(0.1)
            return oldest

    putting = threading.Thread(target=queue.put, args=(third,))
    queue.put(first)
    queue.put(second)
    queue._reports = Interrupted(queue._reports)

    queue.sent(first)
    putting.join()

    assert list(queue._reports) == [second, third]


def test_identities_may_be_kept_in_a_file(coordinator, tmp_path):
    keys = []
    for _ in range(2):
        with Swarm.connect(coordinator.url, identity=tmp_path / "key") as swarm:
            keys.append(swarm.identity.public_key)

    assert keys[0] == keys[1]


def test_a_swarm_is_shared_by_copies_and_not_pickled(coordinator):
    with Swarm.connect(coordinator.url) as swarm:
        assert copy.deepcopy(swarm) is swarm
        with pytest.raises(TypeError, match="connect again"):
            copy.copy(swarm)
