"""The README's pictures, from a real demo: `python -m tests.browser.take_live_screenshots FOLDER`.

Starts `lah demo`, waits until it has trained for a while, and takes the overview in both themes.
"""

import asyncio
import sys
from pathlib import Path

from playwright.async_api import async_playwright

from tests.browser.chromium import find_chromium
from tests.browser.take_screenshots import FLAGS

TRAINED_S = 45.0  # the charts show five minutes; this much of them has something to tell
WIDTH, HEIGHT = 1280, 1130


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "learning_at_home.cli", "demo", "--headless"]
    demo = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert demo.stdout is not None
        url = (await demo.stdout.readline()).decode().removeprefix("dashboard: ").strip()
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark")
            await page.goto(url)
            await page.get_by_text("Healthy.").wait_for(timeout=60_000)
            await asyncio.sleep(TRAINED_S)
            for theme in ("dark", "light"):
                await page.emulate_media(color_scheme=theme)
                await page.screenshot(path=folder / f"overview-{theme}.png", animations="disabled")
            await browser.close()
    finally:
        demo.terminate()
        await demo.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
