"""What a stranger's announcement may aim our probes at."""

import pytest

from backend.live.reachability import MAX_ENDPOINTS, is_local, own_address, worth_calling

LOOPBACK, LAN, LINK, WORLD = "tcp://127.0.0.1:1", "tcp://192.168.1.7:1", "tcp://169.254.169.254:80", "tcp://8.8.4.4:1"
LOOPBACK6, MAPPED, WORLD6 = "tcp://[::1]:1", "tcp://[::ffff:127.0.0.1]:1", "tcp://[2606:4700::1]:1"


@pytest.mark.parametrize(
    "met_at, called",
    [
        ([], {WORLD, WORLD6}),
        ([""], {WORLD, WORLD6}),
        (["93.184.216.34"], {WORLD, WORLD6}),
        (["2606:4700::2", ""], {WORLD, WORLD6}),
        (["192.168.1.20"], {WORLD, WORLD6, LAN, LINK}),
        (["::ffff:192.168.1.20"], {WORLD, WORLD6, LAN, LINK}),
        (["93.184.216.34", "127.0.0.1"], {WORLD, WORLD6, LAN, LINK, LOOPBACK, LOOPBACK6, MAPPED}),
        (["::1"], {WORLD, WORLD6, LAN, LINK, LOOPBACK, LOOPBACK6, MAPPED}),
    ],
)
def test_only_what_the_node_could_reach_itself_is_called(met_at, called):
    everything = [LOOPBACK, LAN, LINK, WORLD, LOOPBACK6, MAPPED, WORLD6]

    assert {each for each in everything if worth_calling([each], met_at)} == called


def test_few_endpoints_of_one_node_are_called_the_best_first():
    endpoints = [f"tcp://8.8.4.4:{port}" for port in range(1, 9)]

    assert worth_calling(endpoints, []) == tuple(endpoints[:MAX_ENDPOINTS])


@pytest.mark.parametrize(
    "host, public_url, address",
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("localhost", "", "127.0.0.1"),
        ("::1", "", "::1"),
        ("lah.example", "", ""),
        ("127.0.0.1", "https://lah.example", ""),
        ("127.0.0.1", "http://192.168.1.5:8765", "192.168.1.5"),
        ("0.0.0.0", "http://[::1]:8765/", "::1"),
    ],
)
def test_our_own_address_is_the_one_under_which_we_are_reached(host, public_url, address):
    assert own_address(host, public_url) == address
    assert is_local(address) == (address in ("127.0.0.1", "::1"))
