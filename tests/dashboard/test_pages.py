"""The pages as the server renders them, asked through the contract that the backend answers."""

import re
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from dashboard.routes import create_router
from dashboard.static_files import mount_static_files
from dashboard.view import Event, ProjectView, Verdict
from tests.dashboard.scripted_source import (
    HOSTILE,
    NOW_S,
    ScriptedSource,
    damaged_view,
    empty_view,
    header,
    healthy_view,
    node_row,
)

PAGES = ["", "/experts", "/nodes", "/contributors", "/join"]


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource({"digits": healthy_view()})


@pytest.fixture
async def pages(source: ScriptedSource) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(create_router(source))
    mount_static_files(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://coordinator") as client:
        yield client


def hostile_view() -> ProjectView:
    view = healthy_view()
    row = node_row(0, name=HOSTILE, device=HOSTILE, notice=HOSTILE, agent=HOSTILE)
    return msgspec.structs.replace(
        view,
        project=msgspec.structs.replace(header(), title=HOSTILE, description=HOSTILE),
        verdict=Verdict("degraded", HOSTILE, HOSTILE, HOSTILE),
        nodes=(row,),
        events=(Event(1, NOW_S, "notice", HOSTILE, HOSTILE),),
        runs=(msgspec.structs.replace(view.runs[0], name=HOSTILE, trainer=HOSTILE),),
    )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("view", [healthy_view(), damaged_view(), empty_view(), hostile_view()])
async def test_every_page_renders_every_swarm(
    pages: httpx.AsyncClient, source: ScriptedSource, page: str, view: ProjectView
):
    source.views["digits"] = view

    answer = await pages.get(f"/p/digits{page}")

    assert answer.status_code == 200
    assert "None" not in re.sub(r"<[^>]*>", "", answer.text)


@pytest.mark.parametrize("page", PAGES)
async def test_what_strangers_call_themselves_is_text_and_never_markup(
    pages: httpx.AsyncClient, source: ScriptedSource, page: str
):
    source.views["digits"] = hostile_view()

    html = (await pages.get(f"/p/digits{page}")).text

    assert "<img" not in html
    assert "&lt;img src=x" in html


@pytest.mark.parametrize("page", PAGES)
async def test_no_page_has_inline_script_or_style(pages: httpx.AsyncClient, page: str):
    html = (await pages.get(f"/p/digits{page}")).text

    assert re.search(r"<style|\sstyle=|\son[a-z]+=", html) is None
    assert re.findall(r"<script(?![^>]*\ssrc=)", html) == []


async def test_a_page_says_what_it_may_load(pages: httpx.AsyncClient):
    answer = await pages.get("/p/digits")

    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert answer.headers["cache-control"] == "no-store"


async def test_the_overview_says_the_verdict_first_and_the_numbers_with_units(pages: httpx.AsyncClient):
    text = words_of((await pages.get("/p/digits")).text)

    assert "Healthy. All 32 experts are serving on 8 nodes." in text
    assert "12,480 rows/s" in text
    assert "3.42 TFLOP/s" in text
    assert "41 / 118 ms" in text


async def test_without_scripts_every_cell_stands_in_the_table(pages: httpx.AsyncClient, source: ScriptedSource):
    source.views["digits"] = damaged_view()

    html = (await pages.get("/p/digits")).text

    assert html.count("data-cell=") == 512
    assert 'data-cell="203" data-health="lost"' in html


async def test_the_address_chooses_the_layer(pages: httpx.AsyncClient):
    assert 'class="cells-table" data-layer="ffn1"' in (await pages.get("/p/digits?layer=ffn1")).text
    assert 'class="cells-table" data-layer="ffn0"' in (await pages.get("/p/digits?layer=nosuch")).text


async def test_the_address_chooses_the_order_of_nodes(pages: httpx.AsyncClient, source: ScriptedSource):
    html = (await pages.get("/p/digits/nodes?sort=-rows_per_s")).text

    fastest = max(source.views["digits"].nodes, key=lambda node: node.rows_per_s)
    assert re.search(r'<tr data-id="([0-9a-f]+)"', html)[1] == fastest.id  # type: ignore[index]


async def test_a_huge_grid_is_counted_and_what_is_wrong_is_listed(pages: httpx.AsyncClient, source: ScriptedSource):
    source.views["digits"] = damaged_view(grid=(128, 128))

    overview, experts = [(await pages.get(f"/p/digits{page}")).text for page in ("", "/experts")]

    assert "A grid of 16,384 cells" in overview
    assert len(overview) < 400_000
    assert "ffn0.3.12" in experts  # cell 400, orphaned
    assert "the first 1,024 are listed" in experts


async def test_an_empty_project_names_the_one_command(pages: httpx.AsyncClient, source: ScriptedSource):
    source.views["digits"] = empty_view()

    text = words_of((await pages.get("/p/digits")).text)

    assert (
        "pipx install 'learning-at-home[node]' && lah node --coordinator https://coordinator.example/p/digits" in text
    )
    assert "– / – ms" in text


async def test_a_project_without_layers_calls_for_no_nodes(pages: httpx.AsyncClient, source: ScriptedSource):
    async def texts(description: str) -> list[str]:
        project = msgspec.structs.replace(header(), description=description)
        source.views["digits"] = msgspec.structs.replace(empty_view(), project=project, layers=())
        return [words_of((await pages.get(page)).text) for page in ("/p/digits", "/p/digits/experts")]

    described, undescribed = await texts("Nodes are simulated elsewhere."), await texts("")

    assert all("lah coordinator --project digits" in text for text in undescribed)
    assert all("Nodes are simulated elsewhere." in text for text in described)
    assert not any("lah node" in text or "lah coordinator" in text for text in described)
    assert not any("lah node" in text for text in undescribed)
    assert "Every expert that was ever hosted is serving" not in described[1]


async def test_the_join_page_says_what_to_type_and_how_much_room_there_is(
    pages: httpx.AsyncClient, source: ScriptedSource
):
    full = words_of((await pages.get("/p/digits/join")).text)
    source.views["digits"] = empty_view()

    empty = words_of((await pages.get("/p/digits/join")).text)

    assert "lah node --coordinator https://coordinator.example/p/digits" in empty
    assert 'lah.DMoE(swarm, layer="ffn0", k_best=4)' in empty
    assert "up to 16 of the 32 cells that nobody hosts now" in empty
    assert "Every cell is hosted now" in full


async def test_the_only_project_opens_at_once(pages: httpx.AsyncClient):
    answer = await pages.get("/")

    assert (answer.status_code, answer.headers["location"]) == (302, "/p/digits")


async def test_several_projects_are_listed(pages: httpx.AsyncClient, source: ScriptedSource):
    source.views["text"] = msgspec.structs.replace(empty_view(), project=header("text"))

    text = words_of((await pages.get("/")).text)

    assert "Healthy. All 32 experts" in text
    assert "Waiting. No node has joined yet." in text


async def test_a_coordinator_without_projects_says_how_to_make_one(pages: httpx.AsyncClient, source: ScriptedSource):
    source.views.clear()

    assert "lah coordinator --project digits" in (await pages.get("/")).text


@pytest.mark.parametrize("page", PAGES)
async def test_an_unknown_project_is_a_page_with_status_404(pages: httpx.AsyncClient, page: str):
    answer = await pages.get(f"/p/nosuch{page}")

    assert answer.status_code == 404
    assert "no project &#39;nosuch&#39;" in answer.text


async def test_charts_of_longer_spans_are_json(pages: httpx.AsyncClient):
    answer = await pages.get("/p/digits/series/throughput.json?span_s=3600")

    assert answer.json()["x"][-1] - answer.json()["x"][0] == pytest.approx(3_600)


@pytest.mark.parametrize("query", ["span_s=0", "span_s=nan", "span_s=1e99", "span_s=x"])
async def test_a_span_that_makes_no_sense_is_refused(pages: httpx.AsyncClient, query: str):
    assert (await pages.get(f"/p/digits/series/throughput.json?{query}")).status_code == 422


async def test_the_contributors_come_as_json_too(pages: httpx.AsyncClient, source: ScriptedSource):
    rows = (await pages.get("/p/digits/contributors.json")).json()

    assert [row["node_id"] for row in rows] == [node.id for node in source.views["digits"].nodes]


@pytest.mark.parametrize("path", ["contributors.json", "series/loss.json"])
async def test_json_of_an_unknown_project_is_404(pages: httpx.AsyncClient, path: str):
    answer = await pages.get(f"/p/nosuch/{path}")

    assert (answer.status_code, answer.json()["error"]) == (404, "UnknownProject")


async def test_an_app_below_a_path_links_below_it(source: ScriptedSource):
    app = FastAPI()
    app.include_router(create_router(source))
    below = httpx.ASGITransport(app, root_path="/lah")
    async with httpx.AsyncClient(transport=below, base_url="http://coordinator") as client:
        html = (await client.get("/p/digits")).text

    assert set(re.findall(r'(?:href|src|data-live)="(/[^/"]*)/', html)) == {"/lah"}


def words_of(html: str) -> str:
    """The text as a reader sees it: no tags, single spaces."""
    text = re.sub(r"<(?:b|span|code|/b|/span|/code)\b[^>]*>", "", html)
    text = re.sub(r"<[^>]*>", "\n", text)
    for entity, sign in {"&#39;": "'", "&amp;": "&", "&#34;": '"', "&lt;": "<", "&gt;": ">"}.items():
        text = text.replace(entity, sign)
    return text
