"""POST /api/v1/knock: the coordinator knocks at the caller's own address, and says nothing of what it finds there."""

from __future__ import annotations

import asyncio
import socket

import pytest

from backend.knocks.knocker import BURST, MAX_ADDRESSES, MAX_AT_ONCE, Knocker
from learning_at_home.errors import NodeOverloaded
from tests.backend.kit import DEADLINE_S, serve

pytestmark = pytest.mark.timeout(30)

TOKEN = "0123456789abcdef" * 2


async def test_the_token_arrives_at_both_ports(tmp_path):
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result(await reader.read())
        writer.close()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        async with serve(tmp_path) as served, await asyncio.start_server(receive, "127.0.0.1", 0) as tcp:
            ports = {"tcp_port": tcp.sockets[0].getsockname()[1], "udp_port": udp.getsockname()[1]}
            answer = await served.http.post("/api/v1/knock", params={"token": TOKEN, **ports})
            async with asyncio.timeout(DEADLINE_S):
                by_tcp, by_udp = await arrived, await asyncio.get_running_loop().sock_recv(udp, 100)

    assert (answer.status_code, answer.json()) == (200, {"address": "127.0.0.1"})
    assert (by_tcp, by_udp) == (TOKEN.encode(), TOKEN.encode())


async def test_the_answer_is_the_same_where_nobody_listens(tmp_path, free_tcp_port):
    async with serve(tmp_path) as served:
        answer = await served.http.post("/api/v1/knock", params={"token": TOKEN, "tcp_port": free_tcp_port})

    assert (answer.status_code, answer.json()) == (200, {"address": "127.0.0.1"})


@pytest.mark.parametrize(
    "wish", [{}, {"token": "QUIT"}, {"token": TOKEN, "tcp_port": 0}, {"token": TOKEN, "udp_port": 65_536}]
)
async def test_a_wish_that_makes_no_sense_is_refused(tmp_path, wish):
    async with serve(tmp_path) as served:
        assert (await served.http.post("/api/v1/knock", params=wish)).status_code == 422


async def test_behind_a_proxy_that_hides_the_caller_nobody_is_knocked_at(tmp_path):
    async with serve(tmp_path, public_url="https://lah.example") as served:
        answer = await served.http.post("/api/v1/knock", params={"token": TOKEN, "tcp_port": served.port})

    assert answer.status_code == 400
    assert "a proxy in front of it hides it" in answer.json()["detail"]


async def test_one_address_is_knocked_at_so_often_and_then_told_to_wait(tmp_path):
    async with serve(tmp_path) as served:
        codes = [
            (await served.http.post("/api/v1/knock", params={"token": TOKEN})).status_code
            for _ in range(int(BURST) + 1)
        ]

    assert codes == [200] * int(BURST) + [503]


def test_the_addresses_that_are_remembered_are_bounded():
    knocker = Knocker()
    for number in range(MAX_ADDRESSES + 10):
        knocker.admit(str(number), 0.0)

    assert len(knocker._buckets) == MAX_ADDRESSES


async def test_so_many_knocks_are_under_way_at_once():
    knocker = Knocker()
    knocks = [asyncio.ensure_future(knocker.knock("127.0.0.1", TOKEN, None, 9)) for _ in range(MAX_AT_ONCE)]
    await asyncio.sleep(0)

    with pytest.raises(NodeOverloaded):
        knocker.admit("127.0.0.1", 0.0)
    await asyncio.gather(*knocks)
    knocker.admit("127.0.0.1", 0.0)
