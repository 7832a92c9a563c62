"""Pictures of every page in both themes and several widths: `python -m tests.browser.take_screenshots FOLDER [WORD]`.

For the eye, and for docs/screenshots. WORD keeps only the pictures whose name contains it.
"""

import asyncio
import sys
import time
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from dashboard.view import ProjectView
from tests.browser.chromium import find_chromium
from tests.browser.scripted_server import serve
from tests.dashboard.scripted_source import ScriptedSource, damaged_view, empty_view, healthy_view

PAGES = {"overview": "", "experts": "/experts", "nodes": "/nodes", "contributors": "/contributors", "join": "/join"}
WIDTHS = {"wide": 1400, "narrow": 320, "4k": 3840}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


def scenes() -> dict[str, ProjectView]:
    now = time.time()
    return {
        "healthy": healthy_view(now),
        "damaged": damaged_view(now),
        "empty": empty_view(now),
        "cube": healthy_view(now, grid=(3, 4, 5)),
        "row": healthy_view(now, grid=(60,)),
    }


def wanted() -> list[tuple[str, str, str, str]]:
    """(scene, page, width, theme)"""
    both = ("dark", "light")
    list_ = [
        (scene, page, "wide", theme) for scene in ("healthy", "damaged", "empty") for page in PAGES for theme in both
    ]
    list_ += [("damaged", page, "narrow", theme) for page in PAGES for theme in both]
    list_ += [("healthy", "overview", "narrow", "dark"), ("empty", "overview", "narrow", "light")]
    list_ += [(scene, "overview", "wide", "dark") for scene in ("cube", "row")]
    return [*list_, ("damaged", "overview", "4k", "dark")]


async def main(folder: Path, word: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    views = scenes()
    source = ScriptedSource()
    async with serve(source) as (server, url), async_playwright() as playwright:
        path = find_chromium()
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        for scene, page, width, theme in wanted():
            name = f"{scene}-{page}-{width}-{theme}"
            if word in name:
                source.views = {"digits": views[scene]}
                await take(browser, f"{url}/p/digits{PAGES[page]}", WIDTHS[width], theme, folder / f"{name}.png")
        if word in "disconnected":
            source.views = {"digits": views["damaged"]}
            context = await browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="dark")
            tab = await context.new_page()
            await tab.goto(f"{url}/p/digits")
            await tab.wait_for_selector("html[data-connection=live]")
            await server.cut()
            await tab.wait_for_selector("html[data-connection=disconnected]")
            await tab.wait_for_timeout(800)
            await tab.screenshot(path=folder / "disconnected.png")
            server.refusing = False
            await context.close()
        if word in "noscript":
            source.views = {"digits": views["healthy"]}
            context = await browser.new_context(
                viewport={"width": 1400, "height": 900}, color_scheme="dark", java_script_enabled=False
            )
            tab = await context.new_page()
            await tab.goto(f"{url}/p/digits")
            await tab.screenshot(path=folder / "noscript.png", full_page=True)
            await context.close()
        await browser.close()


async def take(browser: Browser, url: str, width: int, theme: str, path: Path) -> None:
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if theme == "dark" else "light"
    )
    tab = await context.new_page()
    tab.on("console", lambda message: print(path.name, message.type, message.text))
    tab.on("pageerror", lambda error: print(path.name, "ERROR", error))
    await tab.goto(url)
    await tab.wait_for_selector("html[data-connection=live]")
    await tab.wait_for_timeout(400)
    await tab.screenshot(path=path, full_page=True)
    await context.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
