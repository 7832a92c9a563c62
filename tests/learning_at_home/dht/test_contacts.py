"""Addresses: as people write them, and as strangers tell of them."""

import pytest

from learning_at_home.dht.contacts import is_worth_asking, parse_address, shown_address
from learning_at_home.errors import ConfigError

PUBLIC, HOME, SELF = ("93.184.216.34", 1), ("192.168.1.7", 1), ("127.0.0.1", 1)


@pytest.mark.parametrize(
    "ip, port, teller, expected",
    [
        ("93.184.216.35", 7070, PUBLIC, True),
        ("2606:4700::1111", 7070, PUBLIC, True),
        ("192.168.1.9", 7070, HOME, True),
        ("192.168.1.9", 7070, PUBLIC, False),
        ("10.0.0.1", 7070, PUBLIC, False),
        ("127.0.0.1", 7070, SELF, True),
        ("127.0.0.1", 7070, HOME, False),
        ("::1", 7070, PUBLIC, False),
        ("93.184.216.35", 7070, SELF, True),
        ("93.184.216.35", 0, PUBLIC, False),
        ("224.0.0.1", 7070, PUBLIC, False),
        ("255.255.255.255", 7070, PUBLIC, False),
        ("0.0.0.0", 7070, PUBLIC, False),
        ("example.org", 7070, PUBLIC, False),
        ("fe80::1%eth0", 7070, PUBLIC, False),
        ("::ffff:93.184.216.35", 7070, PUBLIC, False),
        ("::ffff:10.0.0.1", 7070, HOME, False),
        ("", 7070, PUBLIC, False),
    ],
)
def test_a_contact_is_asked_only_where_its_teller_could_ask_it_too(ip, port, teller, expected):
    assert is_worth_asking((ip, port), teller) is expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("127.0.0.1:7070", ("127.0.0.1", 7070)),
        ("coordinator.example:1", ("coordinator.example", 1)),
        ("[2001:db8::1]:7070", ("2001:db8::1", 7070)),
        (" localhost:65535 ", ("localhost", 65_535)),
    ],
)
def test_addresses_as_people_write_them(text, expected):
    host, port = parse_address(text)

    assert (host, port) == expected
    assert shown_address((host, port)) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":7070", "host:0", "host:65536", "host:x", "2001:db8::1:7070", "host:٣"]
)
def test_what_is_no_address_is_told_with_an_example(text):
    with pytest.raises(ConfigError, match="such as"):
        parse_address(text)
