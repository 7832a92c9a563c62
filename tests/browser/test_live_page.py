"""The page's live side against a scripted server: deltas, gaps, disconnection, keyboard, charts."""

import time

import msgspec
import pytest
from playwright.async_api import Page, expect

from dashboard.view import Cell, Change, Event, ProjectView, Verdict
from tests.browser.conftest import WAIT_S, Site, Watch, until
from tests.dashboard.scripted_source import HOSTILE, ScriptedSource, damaged_view, healthy_view, layer, node_row

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CELL_5 = "#grid .cells-table td[data-cell='5']"


def orphaned(view: ProjectView, index: int) -> Cell:
    return msgspec.structs.replace(view.layers[0].cells[index], health="orphaned", rows_per_s=0.0, load=0.0)


async def test_a_delta_changes_a_cell_without_a_reload(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    await page.evaluate("window.notReloaded = true")
    await page.evaluate("document.querySelector('#grid details').open = true")
    await expect(page.locator(CELL_5)).to_have_attribute("data-health", "serving")

    await site.server.push(Change(cells={"ffn0": {"5": orphaned(source.views["digits"], 5)}}))

    await expect(page.locator(CELL_5)).to_have_attribute("data-health", "orphaned")
    await expect(page.locator(CELL_5)).to_have_text("! orphaned")
    await expect(page.locator("#grid [data-count=orphaned]")).to_have_text("1")
    assert await page.evaluate("window.notReloaded")


async def test_the_canvas_shows_what_the_table_says(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    before = await pixel(page, 5)

    await site.server.push(Change(cells={"ffn0": {"5": orphaned(source.views["digits"], 5)}}))

    await expect(page.locator(CELL_5)).to_have_attribute("data-health", "orphaned")
    await until(page, PIXEL_IS_NEAR, [5, [215, 107, 171]])
    assert max(before) == before[1]  # it was green


async def test_a_layer_that_is_not_shown_tells_of_its_damage(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    badge = page.locator("#layers [data-value=ffn1] .tab-badge")
    await expect(badge).to_have_text("✓")

    await site.server.push(Change(cells={"ffn1": {"3": orphaned(source.views["digits"], 3)}}))

    await expect(badge).to_have_text("1")


async def test_the_verdict_and_the_tiles_follow(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    tiles = msgspec.structs.replace(source.views["digits"].tiles, experts_serving=16, rows_per_s=0.0, p50_ms=None)

    await site.server.push(Change(verdict=Verdict("critical", "Critical.", "16 experts are gone."), tiles=tiles))

    await expect(page.locator("h1")).to_have_text("Critical. 16 experts are gone.")
    await expect(page.locator("#tiles [data-field=experts_serving]")).to_have_text("16")
    await expect(page.locator("#tiles [data-field=rows_per_s]").first).to_have_text("0")
    await expect(page.locator("#tiles [data-field=p50_ms]")).to_have_text("–")


async def test_nodes_come_go_and_change_their_order_in_place(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    nodes = source.views["digits"].nodes
    rows = page.locator("#nodes-table tbody tr")
    await page.evaluate("document.querySelector('#nodes-table tbody tr:nth-child(2)').kept = true")
    newcomer = node_row(50, name="vivid-lynx", rows_per_s=0.0)

    order = (newcomer.id, nodes[1].id, *(node.id for node in nodes[2:]))
    await site.server.push(Change(nodes={newcomer.id: newcomer, nodes[0].id: None}, order=order))

    await expect(rows.first.locator("th")).to_have_text("vivid-lynx")
    await expect(rows).to_have_count(8)
    assert await page.evaluate("document.querySelector('#nodes-table tbody tr:nth-child(2)').kept")


async def test_a_name_from_a_stranger_stays_text(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    stranger = node_row(50, name=HOSTILE, device=HOSTILE, notice=HOSTILE)
    first = source.views["digits"].nodes[0].id

    await site.server.push(
        Change(
            nodes={stranger.id: stranger},
            order=(stranger.id, first),
            events=(Event(99, time.time(), "notice", HOSTILE, HOSTILE),),
            cells={"ffn0": {"0": msgspec.structs.replace(source.views["digits"].layers[0].cells[0], node=stranger.id)}},
        )
    )

    await expect(page.locator("#nodes-table tbody th").first).to_have_text(HOSTILE)
    await expect(page.locator("#events li b").first).to_have_text(HOSTILE)
    await page.locator("#grid canvas").focus()
    await page.keyboard.press("Home")
    await expect(page.locator("#grid .tooltip-host")).to_contain_text("<img src=x")
    assert await page.locator("img").count() == 0


async def test_a_gap_in_the_numbers_asks_for_everything_again(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    view = source.views["digits"]
    cells = list(view.layers[0].cells)
    cells[5] = orphaned(view, 5)
    lost = msgspec.structs.replace(view.layers[0], cells=tuple(cells))
    source.views["digits"] = msgspec.structs.replace(view, layers=(lost, view.layers[1]))

    await site.server.push(Change(), skip=1)

    await until(page, "learningAtHome.connection.gaps === 1 && learningAtHome.connection.snapshots === 2")
    await expect(page.locator(CELL_5)).to_have_attribute("data-health", "orphaned")
    await expect(page.locator("#banner")).to_be_hidden()


async def test_a_lost_connection_is_said_and_heals_by_itself(
    page: Page, site: Site, source: ScriptedSource, watch: Watch
):
    await site.open(page)
    await site.server.cut()

    await expect(page.locator("#banner")).to_contain_text("Disconnected, showing data of ")
    await expect(page.locator("#banner .banner-at")).to_have_text(
        await page.evaluate(
            """() => {
              const { view, clockOffsetS } = learningAtHome.connection;
              return new Date((view.at_s + clockOffsetS) * 1000).toTimeString().slice(0, 8);
            }"""
        )
    )
    await until(page, "Number(getComputedStyle(document.querySelector('main')).opacity) < 0.7")
    ages = "[...document.querySelectorAll('#events time')].map((time) => time.textContent).join()"
    frozen = await page.evaluate(ages)
    await until(page, "learningAtHome.connection.ageS() > 1.5")
    assert await page.evaluate(ages) == frozen

    source.views["digits"] = msgspec.structs.replace(
        source.views["digits"], verdict=Verdict("healthy", "Healthy.", "It is back.")
    )
    site.server.refusing = False

    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("h1")).to_have_text("Healthy. It is back.")
    watch.forget_lost_connections()


async def test_a_silent_connection_counts_as_lost(page: Page, site: Site, watch: Watch):
    await site.open(page)
    site.server.beating = False
    site.server.refusing = True

    await expect(page.locator("#banner")).to_be_visible(timeout=WAIT_S * 1_000)

    site.server.refusing = False
    site.server.beating = True
    await expect(page.locator("#banner")).to_be_hidden(timeout=WAIT_S * 1_000)
    watch.forget_lost_connections()


async def test_the_age_is_visible_and_small(page: Page, site: Site):
    await site.open(page)

    await until(page, r"/^0\.\d s$/.test(document.querySelector('.live-age').textContent)")


async def test_the_arrow_keys_walk_over_the_grid(page: Page, site: Site):
    await site.open(page)
    canvas = page.locator("#grid canvas")
    await canvas.focus()

    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        await page.keyboard.press(key)

    await expect(canvas).to_have_attribute("data-current", "ffn0.2.0")
    await expect(page.locator("#grid .tooltip-uid")).to_have_text("ffn0.2.0")
    await expect(page.locator("#grid .tooltip-facts")).to_contain_text("rows/s")
    await page.keyboard.press("Escape")
    await expect(page.locator("#grid .tooltip")).to_be_hidden()


async def test_the_mouse_shows_the_cell_under_it(page: Page, site: Site):
    await site.open(page)
    canvas = page.locator("#grid canvas")
    box = await canvas.bounding_box()
    assert box is not None

    await canvas.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})

    await expect(page.locator("#grid .tooltip-uid")).to_have_text("ffn0.3.3")


async def test_the_grid_says_in_words_what_it_shows(page: Page, site: Site, source: ScriptedSource):
    source.views["digits"] = damaged_view()
    await site.open(page)

    await expect(page.locator("#grid canvas")).to_have_attribute(
        "aria-label",
        "Experts of layer ffn0: 500 serving, 2 degraded, 2 stale, 1 lost, 1 orphaned, 6 vacant. "
        "Arrow keys move between cells.",
    )


async def test_layer_mode_and_span_stay_in_the_address(page: Page, site: Site):
    await site.open(page)

    await page.click("#layers [data-value=ffn1]")
    await page.click("#modes [data-value=updates]")
    await page.click("#spans [data-value='3600']")
    await until(page, "document.querySelector('[data-chart=throughput]').dataset.points === '101'")
    await page.reload()
    await page.wait_for_selector("html[data-connection=live]")

    await expect(page.locator("#layers [data-value=ffn1]")).to_have_attribute("aria-current", "true")
    await expect(page.locator("#modes [data-value=updates]")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#spans [data-value='3600']")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#grid canvas")).to_have_attribute("aria-label", "Experts of layer ffn1: 16 serving. "
        "Arrow keys move between cells.")  # fmt: skip
    assert page.url.endswith("?layer=ffn1&mode=updates&span=3600")


async def test_the_charts_move(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    throughput, loss = page.locator("[data-chart=throughput]"), page.locator("[data-chart=loss]")
    before = await throughput.locator("canvas").screenshot()
    now = time.time()

    await site.server.push(
        Change(points={"throughput": (now, {"forward": 50_000.0, "backward": 1.0}), "loss": (20_000, {"loss": 0.001})})
    )

    await expect(throughput).to_have_attribute("data-last", str(now))
    await expect(throughput.locator("[data-line=forward]")).to_have_text("50,000")
    await expect(loss).to_have_attribute("data-last", "20000")
    await expect(loss.locator("[data-line=loss]")).to_have_text("0.0010")
    assert await throughput.locator("canvas").screenshot() != before


async def test_another_run_replaces_the_loss_curve(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    fresh = msgspec.structs.replace(source.views["digits"].charts["loss"], x=(0.0, 1.0), lines={"loss": (2.0, 1.9)})

    await site.server.push(Change(charts={"loss": fresh}))

    await expect(page.locator("[data-chart=loss]")).to_have_attribute("data-points", "2")


async def test_a_table_is_sorted_by_its_header_and_stays_so(page: Page, site: Site, source: ScriptedSource):
    await site.open(page, "/p/digits/nodes")
    nodes = source.views["digits"].nodes
    first = page.locator("#nodes-table tbody tr").first

    await page.click("th [data-sort=rows_per_s]")
    await expect(first).to_have_attribute("data-id", nodes[-1].id)
    assert page.url.endswith("?sort=-rows_per_s")

    fastest = msgspec.structs.replace(nodes[0], rows_per_s=1e6)
    await site.server.push(Change(nodes={fastest.id: fastest}))
    await expect(first).to_have_attribute("data-id", fastest.id)


async def test_the_filter_hides_what_does_not_match(page: Page, site: Site, source: ScriptedSource):
    await site.open(page, "/p/digits/experts")

    await page.keyboard.press("/")
    await page.keyboard.type("ffn1.3")

    await expect(page.locator("#experts-table tbody tr:visible")).to_have_count(4)
    assert page.url.endswith("?q=ffn1.3")


async def test_damage_is_listed_worst_first_and_leaves_the_list_when_healed(
    page: Page, site: Site, source: ScriptedSource
):
    source.views["digits"] = damaged_view()
    await site.open(page, "/p/digits/experts")
    rows = page.locator("#damaged-table tbody tr")
    await expect(rows.first.locator(".state-word")).to_have_text("orphaned")
    await expect(rows).to_have_count(7)

    healed = layer("ffn1", (8, 8), (node_row(0),)).cells[5]
    await site.server.push(Change(cells={"ffn1": {"5": healed}}))

    await expect(rows).to_have_count(6)


async def test_a_nodes_name_leads_to_its_line_and_from_there_to_its_experts(
    page: Page, site: Site, source: ScriptedSource
):
    await site.open(page)
    name = source.views["digits"].nodes[2].name

    await page.click(f"#nodes-table >> text={name}")
    await page.wait_for_selector("html[data-connection=live]")
    await expect(page.locator("#nodes-table tbody tr:visible")).to_have_count(1)
    await page.click(f"#nodes-table >> text={name}")
    await page.wait_for_selector("html[data-connection=live]")

    await expect(page.locator("#experts-table tbody tr:visible")).to_have_count(4)


async def test_a_whole_id_is_copied_by_a_click(page: Page, site: Site, source: ScriptedSource):
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await site.open(page, "/p/digits/nodes")

    await page.click("#nodes-table tbody tr:first-child .id")

    await expect(page.locator("#nodes-table tbody tr:first-child .id")).to_have_attribute("data-copied", "yes")
    assert await page.evaluate("navigator.clipboard.readText()") == source.views["digits"].nodes[0].id


async def test_numbers_that_change_move_nothing(page: Page, site: Site, source: ScriptedSource):
    await site.open(page)
    places = """[...document.querySelectorAll('.tile, .card, .head, h2, canvas, .seg > *, .scroll > #nodes-table th')]
        .map((element) => [element, element.getBoundingClientRect()])
        .map(([element, box]) => [element.textContent.slice(0, 20), box.x, box.y, box.width, box.height])
        .map(([words, ...box]) => `${/\\d/.test(words) ? "" : words} ${box}`)"""
    before = await page.evaluate(places)
    tiles = msgspec.structs.replace(source.views["digits"].tiles, rows_per_s=9.9, p50_ms=3.0, experts_serving=1)

    await site.server.push(Change(tiles=tiles, cells={"ffn0": {"5": orphaned(source.views["digits"], 5)}}))

    await expect(page.locator("#tiles [data-field=rows_per_s]").first).to_have_text("9.90")
    assert await page.evaluate(places) == before


async def test_a_grid_of_sixteen_thousand_cells_is_drawn_and_follows(page: Page, site: Site, source: ScriptedSource):
    source.views["digits"] = msgspec.structs.replace(healthy_view(grid=(128, 128)), charts={})
    await site.open(page)

    await site.server.push(Change(cells={"ffn0": {"16383": orphaned(source.views["digits"], 16_383)}}))

    await expect(page.locator("#grid [data-count=orphaned]")).to_have_text("1")
    await expect(page.locator("#grid [data-count=serving]")).to_have_text("16,383")


PIXEL = """([index]) => {
  const canvas = document.querySelector("#grid canvas");
  const [columns, rows] = [4, 4];
  const x = ((index % columns) + 0.5) / columns * canvas.width;
  const y = (Math.floor(index / columns) + 0.5) / rows * canvas.height;
  const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
  return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""
PIXEL_IS_NEAR = (
    f"([index, colour]) => {{ const seen = ({PIXEL})([index]); "
    "return seen.every((part, i) => Math.abs(part - colour[i]) < 4); }"
)


async def pixel(page: Page, index: int) -> list[int]:
    """Red, green and blue in the middle of a cell of a 4 x 4 grid."""
    await until(page, "document.querySelector('#grid canvas')?.width > 300")
    await until(page, f"() => ({PIXEL})([{index}]).some((part) => part > 0)")
    colour: list[int] = await page.evaluate(PIXEL, [index])
    return colour
