"""Under which address a peer is told to find us: of a Host header only an address is repeated."""

import pytest
from starlette.requests import Request

from backend.projects.access import access_for, reached_at
from tests.backend.kit import DIGITS, serve

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    "host", ["lah.example", "lah.example:8765", "localhost:1", "127.0.0.1:80", "[2001:db8::1]:8765", "my_host", "a.b."]
)
def test_an_address_is_an_address(host):
    assert reached_at(host) == host


@pytest.mark.parametrize(
    "host",
    [
        "", ":80", "a:", "a:0", "a:65536", "a:b", "[", "[::1", "::1", "[zz]:80", "[1:2]:80", "a b", "a/b", "a@b",
        "a\\b", "-a", "a..b", "x" * 64, "a?b", "a#b", "<script>", "a\r\nb", "é.example", "a:80:80", f"{'a.' * 200}b",
    ],
)  # fmt: skip
def test_what_no_url_could_have_is_none(host):
    assert reached_at(host) is None


def asked(host: str) -> Request:
    return Request(
        {
            "type": "http", "scheme": "http", "method": "GET", "path": "/", "query_string": b"", "root_path": "",
            "headers": [(b"host", host.encode())], "server": ("127.0.0.1", 1), "client": ("9.9.9.9", 2),
        }
    )  # fmt: skip


async def test_a_host_header_that_is_no_address_is_answered_with_our_own(tmp_path):
    async with serve(tmp_path) as served:
        for host in ("evil/../", "[", 'x"onload=', "a@evil.example"):
            access = access_for(asked(host), served.coordinator, DIGITS)
            assert access.dashboard_url == f"http://127.0.0.1:{served.port}/p/digits"
            assert access.bootstrap == ("127.0.0.1:4711",)
        answer = await served.http.get("/api/v1/projects/digits/access", headers={"Host": "["})
        assert answer.status_code == 200
        assert answer.json()["dashboard_url"] == f"http://127.0.0.1:{served.port}/p/digits"


async def test_the_public_address_goes_before_the_host_header(tmp_path):
    async with serve(tmp_path, public_url="https://lah.example/") as served:
        access = access_for(asked("evil.example"), served.coordinator, DIGITS)

    assert access.dashboard_url == "https://lah.example/p/digits"
    assert access.bootstrap == ("lah.example:4711",)
