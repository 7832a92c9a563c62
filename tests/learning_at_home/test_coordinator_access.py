"""What is asked of a coordinator, and what a broken or hostile one may do to the one who asks."""

import asyncio
import gzip
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from learning_at_home import coordinator_access
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import Access, CoordinatorUrl, fetch_access, is_loopback
from learning_at_home.errors import ConfigError, CoordinatorUnreachable, UnknownProject
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectAccess, ProjectRecord

KEY = Identity.generate().public_key.hex()
PROJECT = ProjectRecord(id="digits", title="Digits", layers=(LayerSpec(prefix="ffn0", grid=(2, 2)),))
PATH = "/api/v1/projects/digits/access"
TIMEOUT_S = 10.0

Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


def access(**changes: object) -> bytes:
    fields = {
        "record": PROJECT,
        "coordinator_public_key": KEY,
        "bootstrap": ("127.0.0.1:1",),
        "your_address": "127.0.0.1",
        "wall_s": time.time(),
        "dashboard_url": "https://coordinator.example/p/digits",
    }
    return msgspec.json.encode(ProjectAccess(**{**fields, **changes}))  # type: ignore[arg-type]


def answer(body: bytes, *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} Words", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Coordinator:
    """Mallory: `paths` has the bytes to answer, or who talks instead; `asked` what came."""

    def __init__(self) -> None:
        self.paths: dict[str, bytes | Talk] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def fetch(self, timeout_s: float = TIMEOUT_S, *, patient: bool = False) -> Access:
        async with asyncio.timeout(TIMEOUT_S):
            return await fetch_access(CoordinatorUrl(self.root, "digits"), timeout_s, patient=patient)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(request)
            says = self.paths.get(request.split(" ")[1], answer(b"{}", status=404))
            if isinstance(says, bytes):
                writer.write(says)
                await writer.drain()
            else:
                await says(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    coordinator = Coordinator()
    server = await asyncio.start_server(coordinator.talk, "127.0.0.1", 0)
    coordinator.port = server.sockets[0].getsockname()[1]
    yield coordinator
    server.close()


@pytest.mark.parametrize(
    "text, root, project",
    [
        ("https://host/p/digits", "https://host", "digits"),
        (" https://host/p/digits/\n", "https://host", "digits"),
        ("https://host/p/digits/experts?dark#ffn0", "https://host", "digits"),
        ("https://host/behind/a/proxy/p/digits", "https://host/behind/a/proxy", "digits"),
        ("http://127.0.0.1:8338", "http://127.0.0.1:8338", None),
        ("http://[::1]:8338/", "http://[::1]:8338", None),
    ],
)
def test_an_address_has_a_root_and_perhaps_a_project(text, root, project):
    assert CoordinatorUrl.parse(text) == CoordinatorUrl(root, project)


@pytest.mark.parametrize(
    "text",
    [
        "coordinator:8080",
        "ftp://host/p/digits",
        "https://",
        "https://host/p/",
        "https://host/p/Digits",
        "https://host/p/x\x1b[2J",
        "https://ho st/p/digits",
        "https://host:port/p/digits",
        "http://[::1/p/digits",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"not the address of a project, as in https://coordinator\.example"):
        CoordinatorUrl.parse(text)


def test_telemetry_is_a_websocket_beside_the_access():
    url = CoordinatorUrl("https://host", "digits")

    assert url.telemetry == "wss://host/api/v1/projects/digits/telemetry"
    assert CoordinatorUrl("http://host", "digits").telemetry.startswith("ws://host/")


async def test_access_is_fetched_by_a_projects_address(coordinator):
    coordinator.paths[PATH] = answer(access(wall_s=time.time() + 60))

    found = await coordinator.fetch()

    assert found.access.record == PROJECT
    assert found.ahead_s == pytest.approx(60, abs=2)
    assert "accept-encoding: identity\r\n" in coordinator.asked[0].lower()


async def test_a_coordinators_root_is_enough_when_it_has_one_project(coordinator):
    coordinator.paths["/api/v1/projects"] = answer(b'[{"header": {"id": "digits", "title": ""}, "nodes_online": 0}]')
    coordinator.paths[PATH] = answer(access())

    found = await fetch_access(CoordinatorUrl(coordinator.root, None), TIMEOUT_S)

    assert found.url == CoordinatorUrl(coordinator.root, "digits")


async def test_a_root_with_several_projects_is_refused_with_their_addresses(coordinator):
    coordinator.paths["/api/v1/projects"] = answer(b'[{"header": {"id": "digits"}}, {"header": {"id": "letters"}}]')

    with pytest.raises(ConfigError, match=f"2 projects.*{coordinator.root}/p/digits, {coordinator.root}/p/letters"):
        await fetch_access(CoordinatorUrl(coordinator.root, None), TIMEOUT_S)


@pytest.mark.parametrize(
    "bytes_sent, error, words",
    [
        (answer(b"{}", status=404), UnknownProject, "no project 'digits'"),
        (answer(b"<html>", status=404), CoordinatorUnreachable, "status 404"),
        (answer(b"no \x1b[2J", status=403), CoordinatorUnreachable, r"status 403: no \?\[2J"),
        (answer(b"oops", status=500), CoordinatorUnreachable, "status 500: oops"),
        (b"", CoordinatorUnreachable, "did not answer"),
        (b"SSH-2.0-OpenSSH\r\n", CoordinatorUnreachable, "did not answer"),
        (answer(b"<html>"), CoordinatorUnreachable, "as a coordinator does"),
        (answer(b"{}"), CoordinatorUnreachable, "as a coordinator does"),
        (answer(b'{"dashboard_url": "\xff"}'), CoordinatorUnreachable, "as a coordinator does"),
        (answer(b'{"record": ' + b"[" * 100_000), CoordinatorUnreachable, "as a coordinator does"),
        (answer(b'{"record": {"id": "a1", "\\u001b[2J": 1}}'), CoordinatorUnreachable, r"\?\[2J"),
        (answer(access(coordinator_public_key="00")), CoordinatorUnreachable, "public key"),
        (answer(access(coordinator_public_key="no key")), CoordinatorUnreachable, "as a coordinator does"),
        (answer(access(bootstrap=("127.0.0.1:1",) * 65)), CoordinatorUnreachable, "bootstrap peers"),
        (answer(access(record=ProjectRecord(id="X"))), CoordinatorUnreachable, "not a project id"),
        (answer(access(record=msgspec.structs.replace(PROJECT, title="\x1b[2J"))), CoordinatorUnreachable, "control"),
        (answer(gzip.compress(access()), "content-encoding: gzip"), CoordinatorUnreachable, "compressed"),
        (answer(b" " * (5 << 20)), CoordinatorUnreachable, "more than 4,194,304 bytes"),
    ],
)
async def test_what_is_no_access_is_an_error_with_words(coordinator, bytes_sent, error, words):
    coordinator.paths[PATH] = bytes_sent

    with pytest.raises(error, match=words) as raised:
        await coordinator.fetch()
    assert raised.value.message.isprintable()


async def test_an_endless_answer_is_left_at_the_limit(coordinator):
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 65_536)
            await writer.drain()

    coordinator.paths[PATH] = endless

    with pytest.raises(CoordinatorUnreachable, match="more than"):
        await coordinator.fetch()


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_no_drip_of_bytes_outlives_the_deadline(coordinator, beginning):
    """Each byte comes soon enough for a timeout per read."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    coordinator.paths[PATH] = drip
    started = time.monotonic()

    with pytest.raises(CoordinatorUnreachable, match="no whole answer in time"):
        await coordinator.fetch(0.3)
    assert time.monotonic() - started < TIMEOUT_S / 2


async def test_a_redirect_is_followed_and_its_body_is_not_read(coordinator):
    coordinator.paths[PATH] = answer(b" " * (5 << 20), "location: /elsewhere", status=302)
    coordinator.paths["/elsewhere"] = answer(access())

    assert (await coordinator.fetch()).access.record == PROJECT


@pytest.mark.parametrize("location", [PATH, "ftp://127.0.0.1/", "http://[", "//"])
async def test_redirects_that_lead_nowhere_end(coordinator, location):
    coordinator.paths[PATH] = answer(b"", f"location: {location}", status=302)

    with pytest.raises(CoordinatorUnreachable):
        await coordinator.fetch()
    assert len(coordinator.asked) <= 1 + coordinator_access.MAX_REDIRECTS


async def test_a_coordinator_that_starts_is_asked_again(coordinator):
    async def busy_once(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", status=503))
        coordinator.paths[PATH] = answer(access())

    coordinator.paths[PATH] = busy_once
    assert (await coordinator.fetch(patient=True)).access.record == PROJECT

    coordinator.paths[PATH] = busy_once
    with pytest.raises(CoordinatorUnreachable, match="status 503"):
        await coordinator.fetch()


@pytest.mark.parametrize(
    "wall_s, words",
    [
        (1e308, "one of the two is wrong"),
        (-1e308, "the coordinator's clock is wrong"),
        (0.0, "says that it is 1970-01-01 00:00 UTC.*the coordinator's clock is wrong"),
        (253_402_300_799.0, "says that it is 9999-12-31 23:59 UTC.*one of the two is wrong"),
    ],
)
async def test_a_clock_that_no_drift_explains_is_not_believed(coordinator, wall_s, words):
    coordinator.paths[PATH] = answer(access(wall_s=wall_s))

    with pytest.raises(CoordinatorUnreachable, match=words):
        await coordinator.fetch()


async def test_a_machine_whose_clock_was_never_set_is_told_so(coordinator, monkeypatch):
    coordinator.paths[PATH] = answer(access())
    monkeypatch.setattr("learning_at_home.coordinator_access.time.time", lambda: 3_600.0)

    with pytest.raises(CoordinatorUnreachable, match="it is 1970-01-01 01:00 UTC: this machine's clock is wrong"):
        await coordinator.fetch()


def test_the_clock_is_corrected_by_what_is_more_than_noise(caplog):
    decoded = msgspec.json.decode(access(), type=ProjectAccess)
    clock = SystemClock()
    with caplog.at_level(logging.WARNING):
        Access(CoordinatorUrl("http://host", "digits"), decoded, 0.5).correct(clock)
        assert clock.offset_s == 0.0
        Access(CoordinatorUrl("http://host", "digits"), decoded, -5.0).correct(clock)
        assert clock.offset_s == -5.0
        assert caplog.text == ""
        Access(CoordinatorUrl("http://host", "digits"), decoded, 60.0).correct(clock)

    assert clock.offset_s == 60.0
    assert "clock differs by 60 s" in caplog.text


async def test_what_people_are_shown_is_printable(coordinator):
    coordinator.paths[PATH] = answer(
        access(dashboard_url="javascript:alert(1)", your_address="\r\n", bootstrap=("a\x07:1",))
    )

    shown = (await coordinator.fetch()).access

    assert (shown.dashboard_url, shown.your_address, shown.bootstrap) == ("", "??", ("a?:1",))


async def test_no_proxy_stands_between_a_machine_and_itself(coordinator, monkeypatch):
    coordinator.paths[PATH] = answer(access())
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")

    assert (await coordinator.fetch()).access.record == PROJECT


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://localhost:1/p/x", True),
        ("ws://127.8.0.1/", True),
        ("http://[::1]:1/", True),
        ("https://coordinator.example/", False),
        ("http://192.168.0.1/", False),
        ("http://localhost.example/", False),
    ],
)
def test_loopback_hosts_are_known(url, expected):
    assert is_loopback(url) is expected
