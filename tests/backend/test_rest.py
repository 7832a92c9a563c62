"""The REST API over a real server."""

import msgspec
import pytest
import pytest_asyncio

from learning_at_home.coordinator_messages import encode
from learning_at_home.project import ProjectAccess
from tests.backend.kit import ALICE, DIGITS, announced, eventually, expert, healths, report, serve, telemetry

# One server for all tests of this file: most only read.
pytestmark = [pytest.mark.timeout(30), pytest.mark.asyncio(loop_scope="module")]
API = "/api/v1/projects"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    async with serve(tmp_path_factory.mktemp("rest")) as served:
        yield served


async def test_projects_are_listed(served):
    (summary,) = (await served.http.get(API)).json()

    assert summary["header"]["id"] == "digits"
    assert summary["experts_total"] == 32
    assert summary["verdict"]["level"] == "empty"


async def test_access_has_all_that_a_peer_needs_by_the_name_under_which_it_came(served):
    for host in ("127.0.0.1", "localhost", "lah.example"):
        answer = await served.http.get(f"{API}/digits/access", headers={"Host": f"{host}:{served.port}"})
        access = msgspec.json.decode(answer.content, type=ProjectAccess)

        assert access.record == DIGITS
        assert access.bootstrap == (f"{host}:4711",)
        assert access.your_address == "127.0.0.1"
        assert access.coordinator_public_key == served.coordinator.public_key
        assert access.dashboard_url == f"http://{host}:{served.port}/p/digits"


async def test_the_record_is_published_in_the_dht(served):
    await eventually(lambda: DIGITS in served.eyes.published)


@pytest.mark.parametrize("path", ["", "/access", "/view", "/nodes", "/contributors", "/events", "/series/latency"])
async def test_an_unknown_project_is_an_error_with_a_name(served, path):
    answer = await served.http.get(f"{API}/nothing{path}")

    assert answer.status_code == 404
    assert answer.json()["error"] == "UnknownProject"
    assert "digits" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path, status, error",
    [
        ("/api/v1/nothing", 404, "NotFound"),
        (f"{API}/digits/series/unheard-of", 422, "UsageError"),
        (f"{API}/digits/series/latency?span_s=nan", 422, "UsageError"),
        (f"{API}/digits/series/latency?span_s=-1", 422, "UsageError"),
        (f"{API}/digits/series/latency?span_s=1e300", 422, "UsageError"),
        (f"{API}/digits/events?limit=100000", 422, "UsageError"),
        (f"{API}/digits/events?before=99999999999999999999999", 422, "UsageError"),
    ],
)
async def test_every_refusal_has_the_same_shape(served, path, status, error):
    answer = await served.http.get(path)

    assert answer.status_code == status
    assert set(answer.json()) == {"error", "detail"}
    assert answer.json()["error"] == error


async def test_a_wrong_method_is_refused_in_the_same_shape(served):
    answer = await served.http.post(API)

    assert answer.status_code == 405
    assert answer.json()["error"] == "MethodNotAllowed"


async def test_an_address_of_nobody_has_a_page(served):
    answer = await served.http.get("/nowhere")

    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/", "/p/digits", API, f"{API}/digits/view", "/healthz", "/nowhere", "/api/nothing"])
async def test_every_answer_carries_the_security_headers(served, path):
    headers = (await served.http.get(path)).headers

    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "referrer-policy" in headers
    assert "server" not in headers


async def test_the_service_is_healthy_and_ready(served):
    assert (await served.http.get("/healthz")).json() == {"status": "ok"}
    assert (await served.http.get("/readyz")).json()["status"] == "ok"


async def test_openapi_describes_every_answer(served):
    schema = (await served.http.get("/api/v1/openapi.json")).json()
    names = set(schema["components"]["schemas"])

    assert {"ProjectAnswer", "ProjectView", "ProjectAccess", "NodeRow", "ContributorsAnswer", "Series"} <= names
    for path, operations in schema["paths"].items():
        if path.startswith("/api/"):
            (operation,) = operations.values()
            content = operation["responses"]["200"]["content"]["application/json"]
            reference = content["schema"].get("$ref") or content["schema"]["items"]["$ref"]
            assert reference.rpartition("/")[2] in names


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_no_page_that_loads_from_another_host(served, path):
    assert (await served.http.get(path)).status_code == 404


async def test_what_nodes_say_is_labelled_as_reported(served):
    for path in ("/nodes", "/contributors", ""):
        answer = (await served.http.get(f"{API}/digits{path}")).json()

        assert (answer["verified"], answer["source"]) == (False, "reported")
    assert (await served.http.get(f"{API}/digits/view")).json()["verified"] is False
    assert [each["verified"] for each in (await served.http.get(API)).json()] == [False]


async def test_history_survives_a_restart(tmp_path):
    async with serve(tmp_path) as served:
        served.eyes.announcements.append(announced(ALICE, at_s=served.coordinator.now()))
        async with (
            served.websocket("digits/telemetry") as node,
            served.websocket("digits/telemetry") as trainer,
        ):
            await served.introduced(node, ALICE)
            await served.introduced(trainer, ALICE, role="trainer")
            await node.send(encode(telemetry(expert(0, updates=7))))
            await trainer.send(encode(report(3, loss=0.5)))
            await eventually(lambda: served.swarm.book.runs and served.swarm.totals.updates == 7)
            await eventually(lambda: healths(served.swarm) == dict.fromkeys(range(4), "serving"))
        key = served.coordinator.public_key
        events = (await served.http.get(f"{API}/digits/events")).json()["events"]

    async with serve(tmp_path) as served:
        answer = (await served.http.get(f"{API}/digits")).json()
        assert served.coordinator.public_key == key
        assert answer["updates_total"] == 7
        assert (answer["run"]["step"], answer["run"]["live"]) == (3, False)
        assert answer["health"]["vacant"] == 28
        (node_row,) = (await served.http.get(f"{API}/digits/nodes")).json()["nodes"]
        assert node_row["name"] == ALICE.name
        again = (await served.http.get(f"{API}/digits/events?limit=500")).json()["events"]
        assert [event for event in again if event in events] == events
        loss = (await served.http.get(f"{API}/digits/series/loss")).json()
        assert (loss["x"], loss["lines"]) == ([3.0], {"loss": [0.5]})


async def test_charts_come_from_memory_and_from_rollups(served):
    await eventually(lambda: served.swarm.charts["experts"].samples)
    for span_s in (60, 3_600, 10**8):
        answer = await served.http.get(f"{API}/digits/series/experts?span_s={span_s}")

        assert answer.status_code == 200
        assert set(answer.json()["lines"]) == {"serving", "degraded", "stale", "lost", "orphaned"}
