from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from dashboard.locate import static_folder
from dashboard.static_files import mount_static_files, static_url


@pytest.fixture
async def files() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    mount_static_files(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://coordinator") as client:
        yield client


async def test_a_file_under_its_hash_is_kept_for_ever(files: httpx.AsyncClient):
    answer = await files.get(static_url("style.css"))

    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_a_file_without_a_hash_is_asked_for_again(files: httpx.AsyncClient):
    first = await files.get("/static/style.css")
    second = await files.get("/static/style.css", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["cache-control"] == "no-cache"
    assert second.status_code == 304


@pytest.mark.parametrize(
    "name,media_type", [("js/main.js", "text/javascript"), ("style.css", "text/css"), ("favicon.svg", "image/svg+xml")]
)
async def test_a_browser_never_has_to_guess_what_a_file_is(files: httpx.AsyncClient, name: str, media_type: str):
    answer = await files.get(static_url(name))

    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_nothing_outside_the_folder_is_served(files: httpx.AsyncClient):
    assert (await files.get("/static/..%2Fpyproject.toml")).status_code == 404


def test_modules_import_only_what_is_shipped():
    for module in (static_folder() / "js").glob("*.js"):
        for line in module.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "} from ")) and '"' in line:
                assert (module.parent / line.split('"')[1]).is_file(), f"{module.name}: {line}"
