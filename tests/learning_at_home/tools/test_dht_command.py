"""`lah dht` over real sockets: a peer as a process of its own, look-ups among peers, words and exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.directory.publisher import publish, publish_project
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.tools.dht_command import main
from tests.learning_at_home.tools.processes import STOP_TIMEOUT_S, dht_peer, read_line

KEY = b"\xabk" * 10
PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 3), hidden_size=8),))


@contextlib.asynccontextmanager
async def two_peers() -> AsyncIterator[tuple[DhtNode, DhtNode]]:
    async with (
        asyncio.timeout(40),
        DhtNode(Identity.generate(), slot_rule=AnnouncementSlots()) as alice,
        DhtNode(Identity.generate(), bootstrap=[alice.address], slot_rule=AnnouncementSlots()) as bob,
    ):
        yield alice, bob


async def lah_dht(*arguments: str) -> int:
    """The command's exit code; it has a loop of its own, so it runs in a thread."""
    return await asyncio.to_thread(main, list(arguments))


def announcement(*spans: tuple[int, int], name: str = "brisk-heron") -> Announcement:
    return Announcement(
        project="digits",
        name=name,
        endpoints=("tcp://127.0.0.1:4321",),
        state="online",
        claims=(Claim("ffn0", spans, 1),),
        issued_ms=int(time.time() * 1000),
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "its parent's end"])
def test_a_bootstrap_peer_says_how_to_join_and_leaves_with_code_0(tmp_path: Path, how: str):
    with dht_peer(tmp_path, "--report-every", "0.2") as peer:
        reported = read_line(peer.process)
        assert peer.process.stdin is not None
        if how == "its parent's end":
            peer.process.stdin.close()
        else:
            peer.process.send_signal(getattr(signal, how))
        assert peer.process.wait(STOP_TIMEOUT_S) == 0
        assert peer.process.stdout is not None
        assert peer.process.stderr is not None
        rest, problems = peer.process.stdout.read().splitlines(), peer.process.stderr.read()

    assert reported == "0 peers; 0 records (0 B); refused: none; 0 bad datagrams; 0 timeouts"
    assert (rest[-1], problems) == ("left the DHT", "")


@pytest.mark.slow
def test_another_peer_bootstraps_from_it_and_a_restart_keeps_its_id(tmp_path: Path, capsys):
    with dht_peer(tmp_path / "alice") as alice:
        with dht_peer(tmp_path / "bob", "--bootstrap", alice.address) as bob:
            assert read_line(bob.process) == "joined: 1 peer; bootstrap addresses without an answer: none"
            assert main(["peers", "--bootstrap", bob.address, "--json"]) == 0
            known = json.loads(capsys.readouterr().out)
        first_id = alice.peer_id
    with dht_peer(tmp_path / "alice") as again:
        second_id = again.peer_id

    assert {(peer["address"], peer["node_id"]) for peer in known} == {
        (alice.address, alice.peer_id), (bob.address, bob.peer_id)
    }  # fmt: skip
    assert first_id == second_id


@pytest.mark.slow
def test_a_restart_needs_no_bootstrap_address(tmp_path: Path):
    with dht_peer(tmp_path / "alice") as alice:
        with dht_peer(tmp_path / "bob", "--bootstrap", alice.address) as bob:
            joined = read_line(bob.process)
            bob.process.send_signal(signal.SIGTERM)
            assert bob.process.wait(STOP_TIMEOUT_S) == 0
        with dht_peer(tmp_path / "bob") as again:
            joined_again = read_line(again.process)

    assert joined == joined_again == "joined: 1 peer; bootstrap addresses without an answer: none"


@pytest.mark.slow
def test_two_peers_cannot_share_a_folder(tmp_path: Path, capsys):
    with dht_peer(tmp_path):
        assert main(["run", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(tmp_path)]) == 4
    assert "another `lah dht` of this machine uses" in capsys.readouterr().err


def test_a_port_that_is_taken_has_a_code_of_its_own(tmp_path: Path, capsys):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = str(holder.getsockname()[1])

        assert main(["run", "--host", "127.0.0.1", "--port", port, "--data-dir", str(tmp_path)]) == 6
    assert port in capsys.readouterr().err


async def test_a_key_is_told_with_every_publishers_record(capsys):
    async with two_peers() as (alice, bob):
        await alice.store(KEY, b"of alice", 60)
        await bob.store(KEY, b"of bob", 3_600)
        await bob.withdraw(KEY)

        assert await lah_dht("get", KEY.hex(), "--bootstrap", alice.address) == 0
        lines = capsys.readouterr().out.splitlines()
        assert await lah_dht("get", KEY.hex(), "--bootstrap", alice.address, "--json") == 0
        held = json.loads(capsys.readouterr().out)

    assert lines[0].split() == ["publisher", "sequence", "age", "expires", "in", "size"]
    assert lines[1].startswith(alice.identity.public_key.hex())
    assert lines[2].endswith("withdrawn")
    assert lines[3].startswith("2 peers answered in ")
    of_alice, of_bob = held["records"]
    assert (of_alice["publisher"], of_alice["withdrawn"]) == (alice.identity.public_key.hex(), False)
    assert (of_bob["publisher_id"], of_bob["withdrawn"]) == (bob.identity.peer_id.hex(), True)
    assert -1 < of_alice["age_s"] < 30
    assert 30 < of_alice["expires_in_s"] <= 60
    assert held["num_answered"] == 2


async def test_that_nobody_holds_a_key_is_said_and_has_a_code(capsys):
    async with two_peers() as (alice, _):
        assert await lah_dht("get", "00" * 20, "--bootstrap", alice.address) == 1

    assert capsys.readouterr().out.splitlines()[0] == f"nobody holds the key {'00' * 20}"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["get", "00" * 20], ["get", "ffn0", "--project", "digits"], ["peers"]])
def test_that_nobody_answers_is_another_thing(capsys, free_udp_port: int, arguments: list[str]):
    address = f"127.0.0.1:{free_udp_port}"

    assert main([*arguments, "--bootstrap", address]) == 5
    assert f"{address} does not answer at {address}, UDP" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked,cells,num_served",
    [("ffn0.1.2", ["ffn0.1.2"], 1), ("ffn0.1", ["ffn0.1.1", "ffn0.1.2"], 2), ("ffn0", None, 3)],
)
async def test_an_expert_is_told_with_who_serves_it(capsys, asked: str, cells: list[str] | None, num_served: int):
    async with two_peers() as (alice, bob):
        await publish_project(alice, PROJECT)
        await publish(bob, PROJECT, announcement((0, 1), (4, 6)))
        arguments = ["get", asked, "--project", "digits", "--bootstrap", alice.address]

        assert await lah_dht(*arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert await lah_dht(*arguments, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)

    (node,) = found["nodes"]
    assert (found["num_served"], found["num_answered"]) == (num_served, 2)
    assert (node["name"], node["endpoints"]) == ("brisk-heron", ["tcp://127.0.0.1:4321"])
    assert node["node_id"] == bob.identity.peer_id.hex()
    assert node["cells"] == (cells or ["ffn0.0.0", "ffn0.1.1", "ffn0.1.2"])
    assert node["holds"] == len(node["cells"])
    assert lines[0].startswith(f"{asked} of project digits: ")
    assert lines[2].startswith("brisk-heron  online  tcp://127.0.0.1:4321")


async def test_a_vacant_cell_is_held_by_nobody(capsys):
    async with two_peers() as (alice, bob):
        await publish_project(alice, PROJECT)
        await publish(bob, PROJECT, announcement((0, 1)))

        assert await lah_dht("get", "ffn0.1.2", "--project", "digits", "--bootstrap", alice.address) == 1
    assert capsys.readouterr().out.splitlines()[0] == "nobody holds ffn0.1.2 of project digits"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["get", "ffn0.1.2"], "name it by --project ID"),
        (["get", "FFN", "--project", "digits"], "'FFN' is not a layer prefix"),
        (["get", "ffn0.x", "--project", "digits"], "neither a key of 40 hexadecimal digits nor a uid"),
        (["get", "ffn0", "--project", "digits"], "whom to ask?"),
        (["peers", "--bootstrap", "nowhere"], "'nowhere' is not a DHT address"),
        (["peers", "--coordinator", "nowhere"], "'nowhere' is not the address of a project"),
    ],
)
def test_what_makes_no_sense_says_what_would(capsys, arguments: list[str], words: str):
    assert main(arguments) == 4
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("asked,words", [("ffn9.0.0", "has no layer 'ffn9'"), ("ffn0.9", "outside the grid"),
                                         ("ffn0.1.1.1", "a uid there has 2 indices")])  # fmt: skip
async def test_a_uid_that_the_project_does_not_have_is_told(capsys, asked: str, words: str):
    async with two_peers() as (alice, _):
        await publish_project(alice, PROJECT)

        assert await lah_dht("get", asked, "--project", "digits", "--bootstrap", alice.address) == 4
    assert words in capsys.readouterr().err


async def test_a_strangers_name_cannot_steer_the_terminal(capsys):
    async with two_peers() as (alice, bob):
        await publish_project(alice, PROJECT)
        await publish(bob, PROJECT, announcement((0, 1), name="\x1b[2J"))

        assert await lah_dht("get", "ffn0.0.0", "--project", "digits", "--bootstrap", alice.address) == 0
    assert "\x1b" not in capsys.readouterr().out
