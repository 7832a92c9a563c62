"""Nodes and trainers against a real server: who may speak, and what becomes of those who may not."""

import asyncio
import json
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backend.telemetry import session, sockets
from learning_at_home.coordinator_messages import encode
from learning_at_home.errors import NodeOverloaded, PeerUnreachable, UnknownProject, WireError
from tests.backend.kit import (
    ALICE,
    BOB,
    CAROL,
    FakeEyes,
    announced,
    eventually,
    expert,
    healths,
    introduction,
    read_to_the_end,
    report,
    serve,
    telemetry,
)

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def served(tmp_path):
    async with serve(tmp_path) as served:
        yield served


async def refusal(websocket) -> dict:
    """The refusal that comes before the end."""
    async with asyncio.timeout(10):
        answer = json.loads(await websocket.recv())
        with pytest.raises(ConnectionClosed):
            await websocket.recv()
    assert answer["type"] == "refused"
    return answer


async def test_a_node_that_is_up_lights_its_cells(served):
    served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
    async with served.websocket("digits/telemetry") as websocket:
        assert (await served.introduced(websocket, ALICE))["type"] == "accepted"
        await websocket.send(encode(telemetry(expert(0, updates=7), expert(1))))
        await eventually(lambda: healths(served.swarm) == dict.fromkeys(range(4), "serving"))

    answer = (await served.http.get("/api/v1/projects/digits")).json()
    assert answer["updates_total"] == 7
    assert answer["experts_serving"] == 4


async def test_a_node_whose_socket_drops_and_that_answers_no_probe_is_orphaned(served):
    served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
    async with served.websocket("digits/telemetry") as websocket:
        await served.introduced(websocket, ALICE)
        await websocket.send(encode(telemetry(expert(0))))
        await eventually(lambda: healths(served.swarm) == dict.fromkeys(range(4), "serving"))
        served.eyes.dead.add(ALICE.public_key)
        websocket.transport.abort()
    started_s = asyncio.get_running_loop().time()
    await eventually(lambda: healths(served.swarm) == dict.fromkeys(range(4), "orphaned"), timeout_s=3.0)

    assert asyncio.get_running_loop().time() - started_s < 2.0  # probes here fail at once: 1 s lies between them


async def test_a_trainers_report_is_on_the_page(served):
    async with served.websocket("digits/telemetry") as websocket:
        await served.introduced(websocket, CAROL, role="trainer")
        await websocket.send(encode(report(3, run="first", loss=0.5, accuracy=0.9)))
        await eventually(lambda: served.swarm.book.runs)

    run = (await served.http.get("/api/v1/projects/digits")).json()["run"]
    assert (run["step"], run["metrics"]) == (3, {"loss": 0.5, "accuracy": 0.9})


async def test_an_unknown_project_is_refused_by_name(served):
    async with served.websocket("nothing/telemetry") as websocket:
        answer = await refusal(websocket)

    assert answer["code"] == UnknownProject.code
    assert "digits" in answer["message"]


@pytest.mark.parametrize("change", ["project", "role", "nonce", "coordinator", "key"])
async def test_a_signature_for_anything_else_is_refused(served, change):
    async with served.websocket("digits/telemetry") as websocket:
        challenge = json.loads(await websocket.recv())
        if change == "nonce":
            challenge["nonce"] = "00" * 32
        if change == "coordinator":
            challenge["coordinator_public_key"] = BOB.public_key.hex()
        made = introduction(
            challenge, ALICE, "trainer" if change == "role" else "node", "other" if change == "project" else "digits"
        )
        message = json.loads(encode(made)) | {"role": "node"}
        if change == "key":
            message["public_key"] = BOB.public_key.hex()
        await websocket.send(json.dumps(message))

        assert (await refusal(websocket))["code"] == WireError.code
    assert served.swarm.nodes == {}


async def test_an_introduction_cannot_be_replayed(served):
    async with served.websocket("digits/telemetry") as websocket:
        challenge = json.loads(await websocket.recv())
        overheard = encode(introduction(challenge, ALICE))
        await websocket.send(overheard)
        assert json.loads(await websocket.recv())["type"] == "accepted"

    async with served.websocket("digits/telemetry") as websocket:
        await websocket.recv()
        await websocket.send(overheard)
        assert (await refusal(websocket))["code"] == WireError.code


GARBAGE = [
    "",
    "{",
    "null",
    "[1, 2]",
    '{"type": "unheard-of"}',
    '{"type": "node"}',
    "[" * 100_000,
    '{"type": "introduction", "role": "king"}',
    b"\x00\xff bytes",
    "x" * (1 << 20) + "x",
]


@pytest.mark.parametrize("introduced", [False, True])
async def test_garbage_is_refused_and_harms_nobody(served, introduced, caplog):
    for garbage in GARBAGE:
        async with served.websocket("digits/telemetry") as websocket:
            if introduced:
                await served.introduced(websocket, ALICE)
            else:
                await websocket.recv()
            await websocket.send(garbage)
            assert (await refusal(websocket))["code"] == WireError.code
    assert not [record for record in caplog.records if record.exc_info]
    assert (await served.http.get("/healthz")).status_code == 200


LIES = [
    encode(telemetry(expert(0, updates=3))).replace('"queue_rows":0', '"queue_rows":NaN'),
    encode(telemetry(expert(0, updates=3))).replace('"queue_rows":0', '"queue_rows":-1'),
    encode(telemetry(expert(0, updates=3))).replace('"p50_ms":2.0', '"p50_ms":1e999'),
    encode(telemetry(expert(0, updates=3))).replace('"p50_ms":2.0', '"p50_ms":1e250'),
    encode(telemetry(expert(0, updates=10**16))),
    encode(report(1, loss=0.5)),
]


async def test_a_node_that_says_what_cannot_be_is_refused_and_changes_nothing(served):
    for message in LIES:
        async with served.websocket("digits/telemetry") as websocket:
            await served.introduced(websocket, ALICE)
            await websocket.send(message)
            assert (await refusal(websocket))["code"] == WireError.code

    assert served.swarm.totals.updates == 0
    assert served.swarm.book.runs == {}


async def test_an_oversized_frame_ends_the_connection(served):
    async with served.websocket("digits/telemetry") as websocket:
        await websocket.recv()
        await websocket.send("x" * (2 << 20))
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.recv()

    assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


async def test_a_second_connection_of_a_key_takes_the_first_ones_place(served):
    served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
    async with served.websocket("digits/telemetry") as first, served.websocket("digits/telemetry") as second:
        await served.introduced(first, ALICE)
        await served.introduced(second, ALICE)
        await first.send(encode(telemetry(expert(0, updates=1))))
        assert (await refusal(first))["code"] == PeerUnreachable.code
        assert served.swarm.nodes[ALICE.public_key.hex()].evidence.socket_open

        await second.send(encode(telemetry(expert(0, updates=5))))
        await eventually(lambda: served.swarm.totals.updates == 5)


async def test_a_peer_that_says_too_much_is_read_more_slowly_and_loses_nothing(served, monkeypatch):
    monkeypatch.setattr(session, "MESSAGES_BURST", 2.0)
    monkeypatch.setattr(session, "MESSAGES_PER_S", 10.0)
    served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
    async with served.websocket("digits/telemetry") as websocket:
        await served.introduced(websocket, ALICE)
        started_s = time.monotonic()
        for number in range(1, 6):
            await websocket.send(encode(telemetry(expert(0, updates=number))))
        await eventually(lambda: served.swarm.totals.updates == 5)

    assert time.monotonic() - started_s > 0.15


async def test_a_peer_that_is_being_slowed_does_not_hold_up_the_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(session, "MESSAGES_BURST", 1.0)
    monkeypatch.setattr(session, "MESSAGES_PER_S", 0.01)
    async with serve(tmp_path) as served:
        served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
        websocket = await served.websocket("digits/telemetry")
        await served.introduced(websocket, ALICE)
        for number in range(1, 4):
            await websocket.send(encode(telemetry(expert(0, updates=number))))
        await eventually(lambda: served.swarm.totals.updates == 2)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 2.0
    await read_to_the_end(websocket)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_one_address_brings_new_keys_only_so_fast_and_known_ones_always(served, monkeypatch):
    monkeypatch.setattr(sockets, "NEW_KEYS_BURST", 1.0)
    async with served.websocket("digits/telemetry") as first, served.websocket("digits/telemetry") as second:
        assert (await served.introduced(first, ALICE))["type"] == "accepted"
        assert (await served.introduced(second, BOB))["code"] == NodeOverloaded.code
        async with served.websocket("digits/telemetry") as again:
            assert (await served.introduced(again, ALICE))["type"] == "accepted"


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//"])
async def test_an_origin_that_is_none_is_refused_like_any_other(served, origin):
    with pytest.raises(InvalidStatus) as caught:
        async with served.websocket("digits/live", origin=origin):
            pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize("path", ["digits/telemetry", "digits/live"])
async def test_a_page_of_another_site_may_not_connect(served, path):
    with pytest.raises(InvalidStatus) as caught:
        async with served.websocket(path, origin="https://evil.example"):
            pass
    assert caught.value.response.status_code == 403

    async with served.websocket(path, origin=f"http://127.0.0.1:{served.port}") as websocket:
        assert await websocket.recv()


async def test_one_address_may_open_so_many_sockets(tmp_path):
    async with serve(tmp_path, FakeEyes(), max_sockets_per_address=1) as served:
        async with served.websocket("digits/telemetry") as websocket:
            await websocket.recv()
            with pytest.raises(InvalidStatus) as caught:
                async with served.websocket("digits/telemetry"):
                    pass
            assert caught.value.response.status_code == 429
        await eventually(lambda: len(served.coordinator.sockets) == 0)
        async with served.websocket("digits/telemetry") as websocket:
            assert await websocket.recv()
