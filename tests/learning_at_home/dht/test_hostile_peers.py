"""What strangers send must change nothing, say nothing in the log, and leave the peer answering."""

import asyncio
import contextlib
import logging
import os
import random
import socket
from typing import Any

import msgspec
import pytest

from learning_at_home.dht.address_proofs import FIRST_REQUEST_BYTES
from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.datagrams import ANSWER, MAC_BYTES, OVERHEAD_BYTES, REQUEST, Datagram, read, sealed
from learning_at_home.dht.messages import (
    PING_BYTES,
    Answer,
    FindNode,
    FindValue,
    Ping,
    Pong,
    Request,
    Store,
    Stored,
    Values,
    encode_answer,
    encode_request,
    neighbours_of,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import Record, sign_record
from learning_at_home.identity import Identity
from tests.learning_at_home.dht.stranger import MALLORY, Stranger

KEY = b"k" * 20
HEADER_BYTES = OVERHEAD_BYTES - MAC_BYTES


def state_of(node: DhtNode) -> tuple[list[Record], list[Contact]]:
    return list(node._storage), sorted(node._protocol.neighbourhood.contacts())


def hostile_datagrams(stranger: Stranger, node: DhtNode, count: int) -> list[bytes]:
    """Garbage, valid requests and parts with bytes changed, cut and added, and msgpack that nests without end."""
    chance = random.Random(7)
    valid = [
        stranger.sealed_request(node, request)
        for request in (
            Ping(),
            FindNode(KEY),
            FindValue(KEY, b""),
            Store(KEY, sign_record(MALLORY, KEY, b"v", sequence=1, expires_ms=1).to_bytes()),
        )
    ]
    datagrams = [
        b"",
        bytes([REQUEST]) * 90,
        bytes([ANSWER]) * 90,
        valid[0][:HEADER_BYTES] + b"\x91" * 1_000,
        b"\x00" * 60_000,
    ]
    for _ in range(count):
        data = bytearray(chance.choice(valid))
        match chance.randrange(4):
            case 0:
                data = bytearray(chance.randbytes(chance.randrange(200)))
            case 1:
                del data[chance.randrange(len(data)) :]
            case 2:
                data[HEADER_BYTES:HEADER_BYTES] = chance.randbytes(chance.randrange(1, 20))
            case _:
                for _ in range(chance.randrange(1, 6)):
                    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        datagrams.append(bytes(data))
    return datagrams


@pytest.mark.slow
async def test_thousands_of_hostile_datagrams_change_nothing(caplog: pytest.LogCaptureFixture):
    failures: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    caplog.set_level(logging.INFO)
    async with (
        asyncio.timeout(20),
        DhtNode(Identity.generate()) as alice,
        DhtNode(Identity.generate(), bootstrap=[alice.address]) as bob,
        Stranger() as stranger,
    ):
        await bob.store(KEY, b"value", 60)
        before = state_of(alice)
        await stranger.ask(alice, Ping(), Pong)  # its address is proven from here on

        for number, datagram in enumerate(hostile_datagrams(stranger, alice, 4_000)):
            stranger.send(alice, datagram)
            if number % 50 == 0:  # let it read them: what the kernel drops tests nothing
                await bob._protocol.greet(("127.0.0.1", alice.port))

        assert [record.value for record in await bob.get(KEY)] == [b"value"]
        assert state_of(alice) == before
        assert alice.status().bad_datagrams + alice._protocol.counters["bad_macs"] > 3_500
    assert failures == []
    assert caplog.records == []


async def test_answers_to_questions_never_asked_are_ignored():
    async with asyncio.timeout(10), DhtNode(Identity.generate()) as alice, Stranger() as stranger:
        pair_key = MALLORY.pair_key(alice.identity.public_key, "dht-datagram")
        for _ in range(100):
            said = Datagram(ANSWER, os.urandom(20), MALLORY.public_key, encode_answer(Pong(1)))
            stranger.send(alice, sealed(said, pair_key))
        await stranger.ask(alice, Ping(), Pong)

        assert state_of(alice) == ([], [])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"value": b"forged"}, "bad-signature"),
        ({"publisher": Identity(b"x" * 32).public_key}, "bad-signature"),
        ({"key": b"x" * 20}, "malformed"),
        ({"expires_ms": 1}, "expired"),
        ({"expires_ms": 1 << 60}, "from-the-future"),
        ({"sequence": 1}, "older"),
        ({"value": b"v" * 4_200}, None),
    ],
)
async def test_a_record_that_is_not_right_is_refused_with_its_reason(change, reason):
    async with asyncio.timeout(10), DhtNode(Identity.generate()) as alice, Stranger() as stranger:
        now_ms = alice._wall_ms()
        good = sign_record(MALLORY, KEY, b"good", sequence=now_ms, expires_ms=now_ms + 60_000)
        assert (await stranger.ask(alice, Store(KEY, good.to_bytes()), Stored)).refusal == ""
        bad = msgspec.structs.replace(good, **{"sequence": good.sequence + 1, **change})

        if reason is None:  # it breaks the format already: no answer at all
            for data in stranger.sealed_parts(alice, Store(KEY, bad.to_bytes()), os.urandom(20)):
                stranger.send(alice, data)
            await stranger.ask(alice, Ping(), Pong)
            assert alice.status().bad_datagrams == 1
        else:
            assert (await stranger.ask(alice, Store(KEY, bad.to_bytes()), Stored)).refusal == reason
            assert alice.status().refusals == {reason: 1}

        assert list(alice._storage) == [good]


async def test_a_stranger_who_does_not_answer_is_in_nobody_s_table():
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate(), wait_timeout_s=0.1) as alice,
        Stranger(client_only=False) as stranger,
    ):
        await stranger.ask(alice, Ping(), Pong)
        pinged_back = await stranger.received.get()

        assert not pinged_back.is_answer
        assert pinged_back.message == encode_request(Ping(), PING_BYTES)
        assert alice.num_peers == 0


def rewritten(data: bytes, **changes: Any) -> bytes:
    """The same datagram with other contents, and the MAC that it had."""
    changed = read(data)._replace(**changes)
    return sealed(changed, None)[:-MAC_BYTES] + data[-MAC_BYTES:]


async def test_requests_whose_mac_is_wrong_are_counted_and_mean_nothing():
    """Another's key, a changed id, kind or message, no proof at all, a MAC of another pair."""
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate()) as alice,
        DhtNode(Identity.generate()) as bob,
        Stranger(client_only=False) as stranger,
    ):
        now_ms = alice._wall_ms()
        record = sign_record(MALLORY, KEY, b"good", sequence=now_ms, expires_ms=now_ms + 60_000)
        store = Store(KEY, record.to_bytes())
        data = stranger.sealed_request(alice, store)
        forged = [
            rewritten(data, sender=bob.identity.public_key),
            rewritten(data, message_id=b"j" * 20),
            rewritten(data, kind=REQUEST | 0x02),
            rewritten(data, message=encode_request(Ping())),
            stranger.sealed_request(bob, store),
        ]
        for datagram in forged:
            stranger.send(alice, datagram)
        stranger.send(alice, sealed(read(data), None))
        stranger.send(alice, rewritten(data, sender=bytes(32)))  # no point of the curve that anybody may use
        await bob._protocol.greet(("127.0.0.1", alice.port))

        assert state_of(alice) == ([], [])
        assert alice._protocol.counters["bad_macs"] == len(forged)
        assert alice.status().bad_datagrams == 2
        assert stranger.received.empty()


async def test_what_a_peer_sent_cannot_be_sent_back_to_it():
    async with asyncio.timeout(10), DhtNode(Identity.generate(), wait_timeout_s=0.3) as alice, Stranger() as stranger:
        heard: list[bytes] = []

        def reflect(data: bytes, addr: tuple[str, int]) -> None:
            heard.append(data)
            stranger.transport.sendto(data, addr)
            stranger.transport.sendto(rewritten(data, kind=ANSWER), addr)

        stranger.datagram_received = reflect  # type: ignore[method-assign]
        assert await alice._protocol.call_find_node(stranger.contact, KEY) is None
        assert heard
        assert state_of(alice) == ([], [])


async def test_a_captured_request_that_is_sent_again_changes_nothing():
    async with asyncio.timeout(10), DhtNode(Identity.generate()) as alice, Stranger() as stranger:
        now_ms = alice._wall_ms()
        record = sign_record(MALLORY, KEY, b"good", sequence=now_ms, expires_ms=now_ms + 60_000)
        data = stranger.sealed_request(alice, Store(KEY, record.to_bytes()))
        for _ in range(10):
            stranger.send(alice, data)
        await stranger.ask(alice, Ping(), Pong)

        assert state_of(alice) == ([record], [])


async def test_a_contact_s_id_cannot_be_taken_over():
    """Who claims another's key cannot make a MAC; who sends what that key once sent is asked, and cannot answer."""
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate()) as alice,
        DhtNode(MALLORY, bootstrap=[alice.address]) as bob,
        Stranger(client_only=False) as stranger,
    ):
        await bob.store(KEY, b"value", 60)
        stranger.send(alice, stranger.sealed_request(alice, Ping()))  # as captured from bob: it has his key
        await alice._protocol.greet(bob._protocol.transport.get_extra_info("sockname"))
        await alice.get(KEY)

        assert [contact.port for contact in alice._protocol.neighbourhood.contacts()] == [bob.port]


@pytest.mark.parametrize("kind_of_lie", ["forged", "garbage", "endless", "old", "silence"])
async def test_a_lying_peer_does_not_hide_or_change_what_honest_ones_hold(kind_of_lie: str):
    async with asyncio.timeout(20), DhtNode(Identity.generate(), wait_timeout_s=0.2) as alice:
        async with DhtNode(Identity.generate(), bootstrap=[alice.address], wait_timeout_s=0.2) as bob:
            await bob.store(KEY, b"value", 60)
            (true,) = list(alice._storage)

        def lie(request: Request) -> Answer | bytes | None:
            if not isinstance(request, FindValue):
                return None
            forged = msgspec.structs.replace(true, value=b"false", sequence=true.sequence + 1).to_bytes()
            after = (int.from_bytes(request.after, "big") + 1).to_bytes(32, "big")
            lies: dict[str, Answer | bytes | None] = {
                "forged": Values((forged,) * 10, b"", ()),
                "garbage": b"\xc1" * 100,
                "endless": Values((forged,), after, ()),
                "old": Values((), b"", neighbours_of([Contact(MALLORY.public_key, "127.0.0.1", 9)])),
                "silence": None,
            }
            return lies[kind_of_lie]

        async with Stranger(lie) as liar:
            alice._protocol.neighbourhood.answered(liar.contact, 0.0)

            assert await alice.get(KEY) == [true]
            assert liar.num_requests <= 40


async def test_full_buckets_make_the_table_ask_its_oldest_contact_without_a_stray_task():
    """The package's table calls `ensure_future(protocol.call_ping(...))` and forgets the task: ours is kept."""
    async with asyncio.timeout(10), DhtNode(Identity.generate(), wait_timeout_s=0.1) as alice:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            before = len(asyncio.all_tasks())
            for _ in range(400):
                alice._protocol.neighbourhood.answered(Contact(Identity.generate().public_key, "127.0.0.1", port), 0.0)
            assert len(asyncio.all_tasks()) <= before + 1


async def test_an_address_that_a_liar_tells_of_is_sent_short_datagrams_only():
    """Whoever is there asked for nothing: a store, which may be long, goes only to those who answer there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind(("127.0.0.1", 0))
        victim.setblocking(False)
        async with DhtNode(Identity.generate()) as liar, DhtNode(Identity.generate(), bootstrap=[liar.address]) as node:
            told_of = Contact(MALLORY.public_key, *victim.getsockname())
            liar._protocol.neighbourhood.answered(told_of, liar.clock.monotonic_s())
            async with asyncio.timeout(10):
                assert await node.store(KEY, bytes(700), 60) == 2
        sizes = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sizes.append(len(victim.recv(65_536)))
    assert sizes
    assert max(sizes) <= FIRST_REQUEST_BYTES
