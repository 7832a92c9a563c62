"""What Python and JavaScript both know is the same: formats, tables of states, layouts, how a change is applied."""

import json
import random
from typing import Any

import msgspec
import pytest
from playwright.async_api import Page

from backend.live import delta
from dashboard import drawing, formatting, health
from dashboard.static_files import static_url
from dashboard.view import ProjectView
from tests.browser.conftest import Site
from tests.dashboard.format_cases import CASES, SCALED
from tests.dashboard.scripted_source import damaged_view, healthy_view, node_row

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CALL = """async ([module, name, calls]) => {
  const it = (await import(module))[name];
  return typeof it === "function" ? calls.map((call) => it(...call)) : it;
}"""


async def in_browser(page: Page, site: Site, module: str, name: str, calls: list[list[Any]] | None = None) -> Any:
    if not page.url.startswith(site.url):
        await site.open(page)
    return await page.evaluate(CALL, [static_url(f"js/{module}.js"), name, calls or []])


async def test_numbers_read_the_same(page: Page, site: Site):
    dice = random.Random(5)
    for name, cases in CASES.items():
        values = [value for value, _ in cases]
        values += [dice.choice([1, 10, 1e3, 1e6, 1e12]) * dice.random() for _ in range(200)]
        values += [dice.randrange(4_000) / 8 for _ in range(100)]  # halves and eighths: where rounding has to decide
        said = await in_browser(page, site, "format", name, [[value] for value in values])
        assert said == [formatting.FILTERS[name](value) for value in values], name


async def test_prefixes_are_the_same(page: Page, site: Site):
    said = await in_browser(page, site, "format", "scaled", [[value, unit] for value, unit, _ in SCALED])

    assert said == [list(words) for _, _, words in SCALED]


@pytest.mark.parametrize("name", ["GLYPHS", "TINTS", "EVENT_GLYPHS", "EVENT_TINTS"])
async def test_states_look_the_same(page: Page, site: Site, name: str):
    assert await in_browser(page, site, "health", name) == dict(getattr(health, name))


async def test_grids_are_laid_out_the_same(page: Page, site: Site):
    grids = [[1], [16], [24], [25], [60], [1000], [4, 4], [16, 32], [256, 256], [3, 4, 5], [2, 2, 2, 2]]

    assert await in_browser(page, site, "grid_layout", "panelShape", [[grid] for grid in grids]) == [
        list(drawing.panel_shape(grid)) for grid in grids
    ]
    assert await in_browser(page, site, "grid_layout", "isRoomy", [[grid] for grid in grids]) == [
        drawing.is_roomy(grid) for grid in grids
    ]


async def test_lines_are_drawn_the_same(page: Page, site: Site):
    x, y = [0.0, 1.0, 2.5, 4.0], [1.0, None, 3.3, 0.2]

    assert await in_browser(page, site, "sparkline", "linePath", [[x, y, 120, 26, 4.0]]) == [
        drawing.line_path(x, y, 120, 26, 4.0)
    ]


async def test_a_browser_applies_a_change_as_the_coordinator_means_it(page: Page, site: Site):
    """The coordinator writes down in delta.apply what a browser does; this holds the browser to it."""
    old = healthy_view()
    for new in (damaged(old), with_longer_charts(old), old):
        change = delta.difference(old, new)
        meant = delta.apply(old, change, new.at_s)
        if not page.url.startswith(site.url):
            await site.open(page)
        became = await page.evaluate(
            """async ([module, view, change, at]) => {
              (await import(module)).applyChange(view, change, at);
              return view;
            }""",
            [static_url("js/view.js"), plain(old), plain(change), new.at_s],
        )
        assert became == plain(meant)


def damaged(old: ProjectView) -> ProjectView:
    """The old swarm after a bad minute: another order, a node gone and one come, cells lost, events, tiles, verdict."""
    bad = damaged_view(old.at_s + 5, grid=(4, 4))
    nodes = (node_row(40, at_s=old.at_s), *bad.nodes[3:], bad.nodes[0])
    layers = tuple(
        msgspec.structs.replace(layer, cells=(*other.cells[:8], *layer.cells[8:]))
        for layer, other in zip(old.layers, bad.layers, strict=True)
    )
    return msgspec.structs.replace(bad, nodes=nodes, layers=layers, charts=old.charts, events=old.events)


def with_longer_charts(old: ProjectView) -> ProjectView:
    loss = delta.append(old.charts["loss"], (18_500.0, {"loss": 0.03}))
    return msgspec.structs.replace(old, at_s=old.at_s + 2, charts={**old.charts, "loss": loss})


def plain(value: object) -> Any:
    return json.loads(msgspec.json.encode(value))
