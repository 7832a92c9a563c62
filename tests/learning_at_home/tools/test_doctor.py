"""`lah doctor` against what it is for: nothing at all, a wrong clock, names that are none, ports that are taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import CoordinatorUrl
from learning_at_home.dht.node import DhtNode
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectAccess, ProjectRecord
from learning_at_home.tools import machine_checks
from learning_at_home.tools.checks import Check, Status, check_lines
from learning_at_home.tools.doctor import Patient, examine_network, is_healthy
from learning_at_home.tools.doctor_command import main
from learning_at_home.tools.network_checks import check_clock, series
from learning_at_home.tools.reachability import Door, judge_knock
from learning_at_home.version import AGENT
from tests.learning_at_home.client.small_coordinator import SmallCoordinator

LIMIT_S = 10.0  # of the whole, when nothing answers
NO_NAME = "a" * 64  # too long for DNS: no resolver is asked
PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 2), hidden_size=8),))


@pytest.fixture
def coordinator() -> Iterator[SmallCoordinator]:
    with contextlib.closing(SmallCoordinator(PROJECT)) as running:
        yield running


async def network_checks_of(folder: Path, **patient: Any) -> dict[str, Check]:
    async with asyncio.timeout(LIMIT_S):
        checks = await examine_network(Patient(folder=folder, host="127.0.0.1", **patient), SystemClock())
    return {check.name: check for check in checks}


def statuses(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.status.value for name, check in checks.items()}


@pytest.mark.slow
def test_where_nothing_answers_it_ends_in_time_and_every_line_says_what_to_do(
    tmp_path, capsys, free_tcp_port, free_udp_port
):
    peers = ["--bootstrap", f"127.0.0.1:{free_udp_port}", "--bootstrap", f"{NO_NAME}:1"]
    started_s = time.monotonic()

    code = main(["--coordinator", f"http://127.0.0.1:{free_tcp_port}/p/digits", *peers, "--data-dir", str(tmp_path)])

    assert time.monotonic() - started_s < LIMIT_S
    told = capsys.readouterr().out.splitlines()
    assert code == 1
    heads = [line.split()[0] for line in told]
    assert heads.count("failed") == 3
    assert heads.count("->") == heads.count("failed") + heads.count("warning")
    assert all(heads[number - 1] in ("failed", "warning") for number, head in enumerate(heads) if head == "->")


@pytest.mark.slow
def test_json_has_every_check_and_whether_all_is_well(tmp_path, capsys):
    code = main(["--json", "--data-dir", str(tmp_path)])

    told = json.loads(capsys.readouterr().out)
    assert (code, told["ok"]) == (0, True)
    names = [check["name"] for check in told["checks"]]
    assert names == [
        "version", "extras", "torch", "data folder", "peers", "clock", "TCP port", "UDP port", "TCP reached",
        "UDP reached",
    ]  # fmt: skip
    assert {check["status"] for check in told["checks"]} <= {"ok", "warning"}
    assert all(bool(check["fix"]) == (check["status"] != "ok") for check in told["checks"])


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--bootstrap", "nowhere"], "'nowhere' is not a DHT address"),
        (["--coordinator", "nowhere"], "'nowhere' is not the address of a project"),
        (["--port", "65536"], "--port 65536 is no port"),
        (["--warp"], "unrecognized arguments"),
    ],
)
def test_a_command_line_without_sense_is_a_usage_error(capsys, arguments: list[str], words: str):
    with pytest.raises(SystemExit) as end:
        main(arguments)

    assert end.value.code == 2
    assert words in capsys.readouterr().err


async def test_peers_that_answer_are_told_with_their_round_trip_and_tell_the_time(tmp_path):
    async with DhtNode(Identity.generate()) as alice, DhtNode(Identity.generate()) as bob:
        checks = await network_checks_of(tmp_path, bootstrap=(alice.address, bob.address))

    of_alice = checks[f"peer {alice.address}"]
    assert (of_alice.status, checks[f"peer {bob.address}"].status) == (Status.OK, Status.OK)
    assert of_alice.seen.startswith(f"{alice.address} answers in ")
    assert of_alice.seen.endswith(f"ms, id {alice.identity.peer_id.hex()[:12]}")
    assert checks["clock"].status is Status.OK
    assert "the DHT's peers'; 10 s are tolerated" in checks["clock"].seen


@pytest.mark.slow
async def test_a_silent_peer_and_a_name_that_is_none_do_not_hide_the_one_that_answers(tmp_path, free_udp_port):
    silent, unknown = f"127.0.0.1:{free_udp_port}", f"{NO_NAME}:1"
    async with DhtNode(Identity.generate()) as alice:
        checks = await network_checks_of(tmp_path, bootstrap=(silent, alice.address, unknown))

    assert checks[f"peer {alice.address}"].status is Status.OK
    assert checks[f"peer {silent}"].seen == f"nobody answers at {silent}, UDP"
    assert f"let UDP port {free_udp_port} through" in checks[f"peer {silent}"].fix
    assert f"{NO_NAME} cannot be resolved" in checks[f"peer {unknown}"].seen


@pytest.mark.slow
async def test_a_name_server_that_never_answers_holds_up_nothing(tmp_path, monkeypatch):
    ending = threading.Event()

    def ask_for_ever(*_: object) -> list[Any]:
        ending.wait(60)
        raise OSError("nobody waits for this")

    monkeypatch.setattr(socket, "getaddrinfo", ask_for_ever)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    try:
        url = CoordinatorUrl.parse("https://coordinator.example/p/digits")
        checks = await network_checks_of(tmp_path, coordinator=url, bootstrap=("peer.example:1",))
    finally:
        ending.set()

    assert checks["coordinator"].seen == "coordinator.example is not resolved within 3.0 s"
    assert checks["peer peer.example:1"].seen == "no answer within 4.0 s"


@pytest.mark.slow
@pytest.mark.parametrize("peers_offset_s,words", [(30.0, "30.0 s behind"), (-30.0, "30.0 s ahead of")])
async def test_a_clock_that_is_wrong_by_the_peers_is_told_with_the_figure(tmp_path, peers_offset_s: float, words: str):
    async with DhtNode(Identity.generate(), clock=SystemClock(peers_offset_s)) as alice:
        clock = (await network_checks_of(tmp_path, bootstrap=(alice.address,)))["clock"]

    assert clock.status is Status.FAILED
    assert clock.seen.startswith(f"{words} the DHT's peers'; 10 s are tolerated: others refuse")
    assert "timedatectl set-ntp true" in clock.fix


async def test_a_clock_that_is_wrong_by_the_coordinator_is_told_with_the_figure(tmp_path, coordinator):
    coordinator.ahead_s = -25.0

    checks = await network_checks_of(tmp_path, coordinator=CoordinatorUrl.parse(coordinator.url))

    assert checks["clock"].status is Status.FAILED
    assert checks["clock"].seen.startswith("25.0 s ahead of the coordinator's, within 0.1 s of the DHT's peers'")


@pytest.mark.parametrize("ahead_s,status", [(4.9, "ok"), (-5.1, "warning"), (9.9, "warning"), (-10.1, "failed")])
def test_the_clocks_limit(ahead_s: float, status: str):
    assert check_clock(None, ahead_s).status == status
    assert check_clock(ahead_s, None).status == status


async def test_the_coordinators_peers_are_asked_too_and_what_cannot_be_known_is_said(tmp_path, coordinator):
    """This small coordinator does not knock: reachability stays unknown, and that is no failure."""
    checks = await network_checks_of(tmp_path, coordinator=CoordinatorUrl.parse(coordinator.url))

    assert is_healthy(list(checks.values()))
    assert checks["coordinator"].seen.endswith("project digits, 1 layer, sees this machine at 127.0.0.1")
    assert checks[f"peer {coordinator.bootstrap}"].status is Status.OK
    assert checks["TCP reached"].status is Status.WARNING
    assert checks["TCP reached"].seen.startswith(
        "not known whether others reach this machine: the coordinator was asked"
    )


async def test_a_coordinator_of_another_series_is_told_with_both_versions(tmp_path, coordinator):
    access = ProjectAccess(
        record=PROJECT,
        coordinator_public_key=coordinator.identity.public_key.hex(),
        bootstrap=(),
        your_address="127.0.0.1",
        wall_s=time.time(),
        dashboard_url="",
        agent="learning-at-home/9.8.7",
    )
    coordinator.body = msgspec.json.encode(access)

    check = (await network_checks_of(tmp_path, coordinator=CoordinatorUrl.parse(coordinator.url)))["coordinator"]

    assert check.status is Status.WARNING
    assert f"it runs learning-at-home/9.8.7, this machine {AGENT}" in check.seen
    assert "pip install --upgrade learning-at-home" in check.fix


async def test_a_project_that_the_coordinator_does_not_have_is_told(tmp_path, coordinator):
    url = CoordinatorUrl.parse(coordinator.url.replace("digits", "letters"))

    checks = await network_checks_of(tmp_path, coordinator=url)

    assert "has no project 'letters'" in checks["coordinator"].seen
    assert checks["coordinator"].fix.startswith("choose one of the projects that http://127.0.0.1:")


async def test_what_is_no_coordinator_is_told(tmp_path, coordinator):
    coordinator.body = b"<html>"

    checks = await network_checks_of(tmp_path, coordinator=CoordinatorUrl.parse(coordinator.url))

    assert checks["coordinator"].status is Status.FAILED
    assert "did not answer as a coordinator does" in checks["coordinator"].seen


@pytest.mark.parametrize(
    "agent,same",
    [("learning-at-home/0.1.9", True), ("learning-at-home/0.2.0", False), ("learning-at-home/1.1.0", False)],
)
def test_versions_agree_within_a_series(agent: str, same: bool):
    assert (series(agent) == series("learning-at-home/0.1.0")) is same


@pytest.mark.parametrize("kind,flag", [(socket.SOCK_STREAM, "port"), (socket.SOCK_DGRAM, "dht_port")])
async def test_a_port_that_is_taken_is_told(tmp_path, kind: socket.SocketKind, flag: str):
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        port = holder.getsockname()[1]
        checks = await network_checks_of(tmp_path, **{flag: port})

    name = "TCP" if flag == "port" else "UDP"
    assert checks[f"{name} port"].status is Status.FAILED
    assert f"{name} {port} cannot be opened" in checks[f"{name} port"].seen
    assert f"choose another by --{flag.replace('_', '-')}" in checks[f"{name} port"].fix


def test_a_knock_that_did_not_arrive_fails_only_a_port_that_was_named():
    named = judge_knock(Door("TCP", "--port", "expert calls", 4321, port=4321), "203.0.113.7")
    any_port = judge_knock(Door("TCP", "--port", "expert calls", 0, port=4321), "203.0.113.7")

    assert (named.status, any_port.status) == (Status.FAILED, Status.WARNING)
    assert named.seen == "the coordinator knocked at 203.0.113.7:4321, and nothing arrived"
    assert "forward TCP port 4321 to this machine" in named.fix
    assert "trainers need not be reached" in any_port.fix


def test_a_knock_by_the_other_kind_of_address_says_nothing():
    check = judge_knock(Door("TCP", "--port", "expert calls", 4321, port=4321), "2001:db8::1")

    assert check.status is Status.WARNING
    assert check.seen.endswith("sees this machine by IPv6, and the port is open for IPv4 only")
    assert check.fix == "try it by --host ::"


def test_a_knock_from_nearby_proves_nothing_of_elsewhere():
    door = Door("UDP", "--dht-port", "the DHT", 4321, port=4321)
    door.knocked.set()

    assert judge_knock(door, "8.8.8.8").seen == "the coordinator reaches 8.8.8.8:4321"
    assert judge_knock(door, "192.168.1.7").seen.endswith("of others nothing is known")


def test_a_data_folder_that_is_a_file_or_below_one_is_told(tmp_path: Path):
    (tmp_path / "file").touch()

    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        check = machine_checks.look_at_folder(folder)
        assert (check.status, check.seen) == (Status.FAILED, f"{tmp_path / 'file'} is no folder")


def test_a_data_folder_that_is_not_there_yet_is_not_made(tmp_path: Path):
    check = machine_checks.look_at_folder(tmp_path / "later" / "on")

    assert check.status is Status.OK
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_nobody_can_write_is_told():
    check = machine_checks.look_at_folder(Path("/proc/self"))  # not even root can

    assert check.status is Status.FAILED
    assert check.seen.startswith("/proc/self cannot be written: ")


def test_each_extra_that_is_not_complete_is_told_with_what_it_lacks():
    needs = ["httpx>=0.27", "httpx>=0.27; extra == 'trainer'", "no-such-thing[all]>=1; extra == 'node'"]

    assert machine_checks.missing_packages(needs) == {"node": ["no-such-thing"], "trainer": [], "coordinator": []}


async def test_a_missing_extra_is_told_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(machine_checks, "_is_installed", lambda name: name != "psutil")
    some = await machine_checks.check_extras()
    monkeypatch.setattr(machine_checks, "_is_installed", lambda name: False)
    none = await machine_checks.check_extras()

    assert some.status is Status.OK
    assert some.seen == (
        "complete: trainer, coordinator. For lah node (lacks psutil): pip install 'learning-at-home[node]'"
    )
    assert none.status is Status.WARNING
    assert all(f"pip install 'learning-at-home[{extra}]'" in none.fix for extra in ("node", "trainer", "coordinator"))


async def test_a_machine_without_torch_is_told_who_needs_it(monkeypatch):
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None)

    assert await machine_checks.check_torch() == Check(
        "torch", Status.OK, "not installed; only nodes and trainers need it"
    )


@pytest.mark.slow
async def test_a_torch_that_cannot_be_imported_or_hangs_is_told(monkeypatch):
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: object())
    monkeypatch.setattr(machine_checks, "_TRY_TORCH", "raise ImportError('libcudart.so.12: no such file')")
    broken = await machine_checks.check_torch()
    monkeypatch.setattr(machine_checks, "_TRY_TORCH", "import threading; threading.Event().wait(60)")
    monkeypatch.setattr(machine_checks, "TORCH_TIMEOUT_S", 0.2)
    hanging = await machine_checks.check_torch()

    assert broken.status is Status.FAILED
    assert broken.seen.endswith("ImportError: libcudart.so.12: no such file")
    assert hanging.status is Status.WARNING
    assert hanging.seen.startswith("still importing after 200 ms")


@pytest.mark.slow
def test_the_doctor_imports_no_extra():
    code = (
        "import sys, learning_at_home.tools.doctor_command\n"
        "print(*[name for name in ('torch', 'numpy', 'fastapi', 'sqlalchemy', 'psutil') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert answer.stdout.split() == []


def test_what_strangers_wrote_cannot_steer_the_terminal():
    told = check_lines([Check("coordinator", Status.FAILED, "\x1b[2J", "see\x07")])

    assert told == ["failed   coordinator  ?[2J", "                      -> see?", "failed: 1"]
