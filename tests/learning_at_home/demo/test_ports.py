"""Finding a port when the usual one is taken."""

from __future__ import annotations

import socket

from learning_at_home.demo.ports import free_port, is_free


def test_the_preferred_port_is_taken_when_it_is_free(free_tcp_port):
    assert free_port(free_tcp_port) == free_tcp_port


def test_another_port_is_found_when_the_preferred_one_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert not is_free(port)
        assert free_port(port) != port
        assert is_free(free_port(port))


def test_no_preference_is_any_free_port():
    assert is_free(free_port(0))
