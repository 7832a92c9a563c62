"""How the pages look to everyone: both themes, any width, without scripts."""

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import Site, Watch
from tests.dashboard.scripted_source import ScriptedSource, damaged_view, empty_view

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

PAGES = ["", "/experts", "/nodes", "/contributors", "/join"]
WIDTHS = [320, 390, 768, 1400, 3840]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("theme", ["dark", "light"])
async def test_no_page_is_wider_than_its_window(page: Page, site: Site, source: ScriptedSource, theme: str):
    await page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    too_wide = []
    for name, view in {"damaged": damaged_view(), "empty": empty_view()}.items():
        source.views["digits"] = view
        for path in PAGES:
            await site.open(page, f"/p/digits{path}")
            for width in WIDTHS:
                await page.set_viewport_size({"width": width, "height": 900})
                if (excess := await page.evaluate(OVERFLOW)) > 0:
                    too_wide.append((name, path, width, excess))

    assert too_wide == []


@pytest.mark.parametrize("theme,ground", [("dark", "rgb(12, 15, 20)"), ("light", "rgb(246, 247, 249)")])
async def test_the_page_takes_the_systems_theme(page: Page, site: Site, theme: str, ground: str):
    await page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    await site.open(page)

    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == ground


async def test_a_chosen_theme_is_remembered_and_painted_first(page: Page, site: Site):
    await site.open(page)
    await page.click("#theme")
    assert await page.evaluate("document.documentElement.dataset.theme") == "light"

    # At the moment the body begins to be parsed, the theme must be set: nothing was painted before.
    await page.add_init_script(
        "new MutationObserver(() => { if (document.body && !window.first) "
        "window.first = document.documentElement.dataset.theme; })"
        ".observe(document, { childList: true, subtree: true });"
    )
    await page.reload()

    assert await page.evaluate("window.first") == "light"


async def test_everything_is_readable_without_scripts(chromium: Browser, site: Site, source: ScriptedSource):
    source.views["digits"] = damaged_view(grid=(8, 16))
    context = await chromium.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(f"{site.url}/p/digits")

    await expect(page.locator("noscript p")).to_contain_text("Without JavaScript")
    await expect(page.locator("svg.cells rect.cell")).to_have_count(128)
    await expect(page.locator("#nodes-table tbody tr")).to_have_count(9)
    await expect(page.locator("#theme")).to_be_hidden()
    await page.click("#grid summary")
    await expect(page.locator("#grid td[data-cell='77']")).to_have_text("– stale")
    await page.click("#layers [data-value=ffn1]")
    await expect(page.locator(".cells-table")).to_have_attribute("data-layer", "ffn1")
    await page.click("nav >> text=Nodes")
    await page.click("[data-sort=rows_per_s]")
    await expect(page.locator("th[aria-sort=descending]")).to_have_count(1)
    await context.close()


async def test_the_server_draws_the_grid_where_the_canvas_will_be(chromium: Browser, site: Site):
    heights = []
    for scripts in (False, True):
        context = await chromium.new_context(viewport={"width": 1400, "height": 900}, java_script_enabled=scripts)
        page = await context.new_page()
        await page.goto(f"{site.url}/p/digits")
        await page.wait_for_selector("#grid canvas" if scripts else "#grid svg.cells")
        box = await page.locator("#grid canvas" if scripts else "#grid svg.cells").bounding_box()
        heights.append(box and round(box["height"]))
        await context.close()

    assert heights[0] == heights[1]


async def test_everything_that_can_be_used_can_be_reached_by_tab(page: Page, site: Site):
    await site.open(page)
    reached = set()
    for _ in range(60):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate("document.activeElement.localName + (document.activeElement.id || '')"))
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or await page.evaluate("document.activeElement === document.body")

    assert {"buttontheme", "canvas", "ulevents", "summary"} <= reached


async def test_motion_stops_for_who_asks(page: Page, site: Site):
    await page.emulate_media(reduced_motion="reduce")
    await site.open(page)

    assert await page.evaluate("document.getAnimations().length") == 0


async def test_a_wrong_address_is_a_page_with_a_way_back(page: Page, site: Site, watch: Watch):
    answer = await page.goto(f"{site.url}/nosuch")

    assert answer is not None
    assert answer.status == 404
    await expect(page.locator("main a")).to_have_attribute("href", "/")
    watch.complaints.clear()  # the browser itself notes the 404
