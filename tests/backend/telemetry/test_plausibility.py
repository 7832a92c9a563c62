import pytest

from backend.telemetry import sockets as sockets_module
from backend.telemetry.plausibility import checked
from backend.telemetry.sockets import BYTES_BURST, BYTES_PER_S, OpenSockets, is_same_origin, one_of_many
from learning_at_home.coordinator_messages import DeviceTelemetry, NodeTelemetry, Report, TrainerTelemetry
from learning_at_home.errors import NodeOverloaded, WireError
from tests.backend.kit import NOW, expert, report, telemetry


@pytest.mark.parametrize(
    "message",
    [
        telemetry(expert(updates=10**16)),
        telemetry(expert(flop=1e299)),
        telemetry(expert(p95_ms=1e200)),
        telemetry(expert(0), expert(0)),
        telemetry(staleness=(0, 10**16)),
        telemetry(started_s=1e300),
        telemetry(started_s=-1.0),
        TrainerTelemetry(started_s=NOW, calls=10**16, failures=0, rows=0, p50_ms=None, p95_ms=None),
        report(1, loss=1e300),
        report(1, loss=-1e300),
        report(1, loss=float("nan")),
        report(1, loss=float("inf")),
        NodeTelemetry(
            started_s=NOW, state="online", experts=(), queue_rows=0, refused=0, p50_ms=None, p95_ms=None,
            device=DeviceTelemetry(temperature_c=1e9),
        ),
    ],
)  # fmt: skip
def test_figures_that_cannot_be_true_are_refused(message):
    with pytest.raises(WireError):
        checked(message)


@pytest.mark.parametrize("message", [telemetry(expert(updates=5, p95_ms=3.0)), report(7, loss=-0.5, accuracy=0.9)])
def test_figures_that_can_be_true_pass_unchanged(message):
    assert checked(message) == message


def test_words_are_made_printable():
    told = checked(report(7, run="two\nlines\u202e", **{"lo\0ss": 1.0}))

    assert isinstance(told, Report)
    assert (told.run, told.metrics) == ("two?lines?", {"lo?ss": 1.0})


@pytest.mark.parametrize(
    "origin, same",
    [
        (None, True),
        ("http://127.0.0.1:8765", True),
        ("https://lah.example", True),
        ("https://LAH.example", True),
        ("https://evil.example", False),
        ("http://127.0.0.1:9999", False),
        ("http://127.0.0.1", False),
        ("null", False),
        ("http://[", False),
        ("http://[::1", False),
        ("file://127.0.0.1:8765", False),
        ("", False),
    ],
)
def test_only_our_own_pages_may_open_a_websocket(origin, same):
    assert is_same_origin(origin, "127.0.0.1:8765", "https://lah.example") is same


def test_one_address_has_a_limit_and_gets_its_room_back():
    sockets = OpenSockets()
    with sockets.slot("a", 2), sockets.slot("a", 2), sockets.slot("b", 2):
        with pytest.raises(NodeOverloaded), sockets.slot("a", 2):
            pass
        assert len(sockets) == 3

    assert len(sockets) == 0
    with sockets.slot("a", 1):
        pass


def test_all_addresses_together_have_a_limit():
    sockets = OpenSockets(max_sockets=1)
    with sockets.slot("a", 2), pytest.raises(NodeOverloaded), sockets.slot("b", 2):
        pass


def test_the_second_speaker_of_a_key_replaces_the_first():
    sockets = OpenSockets()
    with sockets.speaker("digits", "node", b"key") as first:
        with sockets.speaker("digits", "node", b"key") as second:
            assert first.replaced
            with sockets.speaker("digits", "trainer", b"key"):
                assert not second.replaced
        with sockets.speaker("digits", "node", b"key") as third:
            assert not third.replaced


def test_what_an_address_used_up_is_not_given_back_with_a_new_socket():
    sockets = OpenSockets()
    assert sockets.allowance("a").num_bytes.owe(1.0, BYTES_BURST + BYTES_PER_S) == 1.0
    with sockets.slot("a", 1):
        pass

    assert not sockets.allowance("a").num_bytes.has(1.0)
    assert sockets.allowance("b").num_bytes.has(1.0)
    assert BYTES_BURST <= 1 << 20


def test_the_allowances_of_few_addresses_are_remembered(monkeypatch):
    monkeypatch.setattr(sockets_module, "MAX_ADDRESSES", 2)
    sockets = OpenSockets()
    kept = sockets.allowance("a")
    for address in ("b", "a", "c"):
        sockets.allowance(address)

    assert sockets.allowance("a") is kept


@pytest.mark.parametrize(
    "address, stands_for",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_a_customers_whole_network_is_one_address(address, stands_for):
    assert one_of_many(address) == stands_for
