"""A real Chromium for the tests of the pages.

Async. One browser serves the whole session, because a start costs more than most tests; each test has its own context.
So tests and fixtures here share one loop: `pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from tests.browser.chromium import ADVICE, find_chromium
from tests.browser.scripted_server import ScriptedServer, serve
from tests.dashboard.scripted_source import ScriptedSource, healthy_view

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The timeout of one wait inside a page. Far below the test's own, so that the failure says what was waited for.
WAIT_S = 15.0
WIDE: ViewportSize = {"width": 1400, "height": 900}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The browser. Without one the test is skipped on a developer's machine and fails in CI."""
    path = await asyncio.to_thread(find_chromium)  # Playwright's synchronous half may not run on a loop
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(ADVICE)
        pytest.skip(ADVICE)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@dataclass
class Watch:
    """What a page must never do: complain, or talk to anyone but this machine."""

    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    server_leaves: bool = False  # before the tab does: what the tab says from now on is about that

    def over(self, page: Page) -> None:
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not self.server_leaves:
            self.complaints.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.strangers.append(url)

    def forget_lost_connections(self) -> None:
        """A coordinator that is gone makes the browser itself write errors; no page can prevent that."""
        lost = ("WebSocket connection to", "net::ERR_CONNECTION_REFUSED", "net::ERR_EMPTY_RESPONSE")
        self.complaints = [each for each in self.complaints if not any(sign in each for sign in lost)]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Browser, watch: Watch) -> AsyncIterator[Page]:
    """A fresh tab, 1400 wide and dark; at the end nothing was complained of and no stranger was asked."""
    context = await chromium.new_context(viewport=WIDE, color_scheme="dark", locale="en-GB")
    tab = await context.new_page()
    tab.set_default_timeout(WAIT_S * 1_000)
    watch.over(tab)
    yield tab
    await context.close()
    assert watch.strangers == []
    assert watch.complaints == []


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource({"digits": healthy_view()})


@dataclass(frozen=True)
class Site:
    """The scripted server and its address."""

    server: ScriptedServer
    url: str

    async def open(self, page: Page, path: str = "/p/digits") -> None:
        """The page, live."""
        await page.goto(self.url + path)
        await page.wait_for_selector("html[data-connection=live]")


@pytest_asyncio.fixture(loop_scope="session")
async def site(source: ScriptedSource, watch: Watch) -> AsyncIterator[Site]:
    async with serve(source) as (server, url):
        yield Site(server, url)
        watch.server_leaves = True


async def until(page: Page, expression: str, arg: Any = None, timeout_s: float = WAIT_S) -> None:
    """Wait until a JavaScript expression (or a function of `arg`) is true in the page.

    Playwright's own wait_for_function evaluates strings inside the page, which our Content-Security-Policy forbids.
    """
    deadline = time.monotonic() + timeout_s
    while not await page.evaluate(expression, arg):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {timeout_s:.0f} s: {expression}")
        await asyncio.sleep(0.03)
