"""Browsers against a real server: a snapshot, then numbered deltas, and a quick end."""

import asyncio
import contextlib
import json
import time

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backend.live import hub as hub_module
from backend.live.delta import apply
from dashboard.view import Change, ProjectView
from learning_at_home.coordinator_messages import encode
from tests.backend.kit import ALICE, announced, eventually, expert, read_to_the_end, serve, telemetry

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def served(tmp_path):
    async with serve(tmp_path) as served:
        yield served


class Browser:
    """What a page does with the stream."""

    def __init__(self, websocket) -> None:
        self._websocket = websocket
        self.view: ProjectView | None = None
        self.sequence = -1

    async def read(self) -> None:
        async with asyncio.timeout(5):
            message = json.loads(await self._websocket.recv())
        if message["type"] == "snapshot":
            self.view = msgspec.convert(message["view"], ProjectView, strict=False)
        else:
            assert message["sequence"] == self.sequence + 1
            assert self.view is not None
            self.view = apply(self.view, msgspec.convert(message["change"], Change, strict=False), message["at_s"])
        self.sequence = message["sequence"]

    async def read_until(self, condition) -> None:
        while not condition(self.view):
            await self.read()


def serving(view: ProjectView | None) -> int:
    return 0 if view is None else sum(cell.health == "serving" for layer in view.layers for cell in layer.cells)


async def test_a_browser_sees_a_node_join_and_die_without_a_reload(served):
    async with served.websocket("digits/live") as websocket, served.websocket("digits/telemetry") as node:
        browser = Browser(websocket)
        await browser.read()
        assert serving(browser.view) == 0

        served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
        await served.introduced(node, ALICE)
        await node.send(encode(telemetry(expert(0))))
        started_s = time.monotonic()
        await browser.read_until(lambda view: serving(view) == 4)
        assert time.monotonic() - started_s < 2.0

        served.eyes.dead.add(ALICE.public_key)
        node.transport.abort()
        started_s = time.monotonic()
        await browser.read_until(lambda view: serving(view) == 0)
        await browser.read_until(lambda view: view.layers[0].cells[0].health == "orphaned")
        assert time.monotonic() - started_s < 3.0
        assert browser.view is not None
        assert browser.view.events[0].kind == "orphaned"


async def test_a_quiet_swarm_still_sends_a_delta_every_two_seconds(served):
    async with served.websocket("digits/live") as websocket:
        browser = Browser(websocket)
        await browser.read()
        for _ in range(2):
            started_s = time.monotonic()
            await browser.read()
            assert time.monotonic() - started_s < 2.0


async def test_the_rest_view_the_page_and_the_snapshot_agree(served):
    async with served.websocket("digits/live") as websocket:
        snapshot = json.loads(await websocket.recv())["view"]
    view = (await served.http.get("/api/v1/projects/digits/view")).json()

    assert snapshot["layers"] == view["layers"]
    assert snapshot["project"] == view["project"]
    assert (await served.http.get("/p/digits")).status_code == 200


async def test_a_browser_that_does_not_read_is_let_go_and_holds_nobody_up(served, monkeypatch):
    monkeypatch.setattr(hub_module, "HOPELESS_S", 0.1)
    watched = served.coordinator.projects["digits"]
    slow = watched.hub.join(watched.current_view("http://here", served.coordinator.now()), served.coordinator.now())
    async with served.websocket("digits/live") as websocket:
        browser = Browser(websocket)
        await browser.read()
        while not slow.cut:
            await browser.read()

    assert slow.cut == "slow"


async def test_an_unknown_project_has_no_stream(served):
    with pytest.raises(InvalidStatus) as caught:
        async with served.websocket("nothing/live"):
            pass
    assert caught.value.response.status_code == 404


async def test_a_browser_that_leaves_is_forgotten(served):
    hub = served.coordinator.projects["digits"].hub
    async with served.websocket("digits/live") as websocket:
        await websocket.recv()
        assert len(hub.readers) == 1
    await eventually(lambda: not hub.readers)


async def test_a_browser_that_chatters_is_let_go(served):
    async with served.websocket("digits/live") as websocket:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100):
                await websocket.send("hello")
        await read_to_the_end(websocket)
        assert websocket.close_code is not None


async def test_the_server_stops_quickly_with_open_websockets(tmp_path):
    async with serve(tmp_path) as served:
        browsers = [await served.websocket("digits/live") for _ in range(3)]
        node = await served.websocket("digits/telemetry")
        await served.introduced(node, ALICE)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 2.0
    for websocket in (*browsers, node):
        await read_to_the_end(websocket)
        assert websocket.close_code in (1000, 1012)
