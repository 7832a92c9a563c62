"""What strangers send must change nothing, say nothing in the log, and leave the peer answering."""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable

import msgspec
import pytest

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.messages import (
    FindNode,
    FindValue,
    Ping,
    Pong,
    Store,
    Stored,
    Values,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    split_datagram,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import Record, sign_record
from learning_at_home.identity import Identity

KEY = b"k" * 20
MALLORY = Identity(b"m" * 32)


class Stranger(asyncio.DatagramProtocol):
    """A socket that says what it likes. `answer` makes a datagram of one that came, or None."""

    def __init__(self, answer: Callable[[bytes], bytes | None] = lambda datagram: None) -> None:
        self.answer = answer
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        self.received.put_nowait(data)
        if (answer := self.answer(data)) is not None:
            self.transport.sendto(answer, addr)

    async def __aenter__(self) -> "Stranger":
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(self, *_) -> None:
        self.transport.close()
        await asyncio.sleep(0)

    @property
    def contact(self) -> Contact:
        return Contact(MALLORY.peer_id, *self.transport.get_extra_info("sockname"))

    async def ask(self, node: DhtNode, request) -> bytes:
        """The payload that the node answers."""
        message_id = os.urandom(20)
        self.transport.sendto(encode_request(message_id, request), ("127.0.0.1", node.port))
        while True:
            kind, answered_id, payload = split_datagram(await self.received.get())
            if kind == b"\x01" and answered_id == message_id:
                return payload


def state_of(node: DhtNode) -> tuple[list[Record], list[Contact]]:
    return list(node._storage), sorted(node._protocol.neighbourhood.contacts())


def hostile_datagrams(count: int) -> list[bytes]:
    """Garbage, valid requests with bytes changed, cut and added, and msgpack that nests without end."""
    chance = random.Random(7)
    valid = [
        encode_request(b"i" * 20, request)
        for request in (
            Ping(MALLORY.peer_id),
            FindNode(MALLORY.peer_id, KEY),
            FindValue(MALLORY.peer_id, KEY, b""),
            Store(b"", KEY, sign_record(MALLORY, KEY, b"v", sequence=1, expires_ms=1).to_bytes()),
        )
    ]
    datagrams = [b"", b"\x00" * 22, b"\x01" * 22, b"\x00" + b"i" * 20 + b"\x91" * 5_000, b"\x00" * 60_000]
    for _ in range(count):
        data = bytearray(chance.choice(valid))
        match chance.randrange(4):
            case 0:
                data = bytearray(chance.randbytes(chance.randrange(200)))
            case 1:
                del data[chance.randrange(len(data)) :]
            case 2:
                data[21:21] = chance.randbytes(chance.randrange(1, 20))
            case _:
                for _ in range(chance.randrange(1, 6)):
                    data[chance.randrange(21, len(data))] = chance.randrange(256)
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

        for number, datagram in enumerate(hostile_datagrams(4_000)):
            stranger.transport.sendto(datagram, ("127.0.0.1", alice.port))
            if number % 50 == 0:  # let it read them: what the kernel drops tests nothing
                await bob._protocol.ping_address(("127.0.0.1", alice.port))

        assert [record.value for record in await bob.get(KEY)] == [b"value"]
        assert state_of(alice) == before
        assert alice.status().bad_datagrams > 1_500
    assert failures == []
    assert caplog.records == []


async def test_answers_to_questions_never_asked_are_ignored():
    async with asyncio.timeout(10), DhtNode(Identity.generate()) as alice, Stranger() as stranger:
        for _ in range(100):
            stranger.transport.sendto(
                encode_answer(os.urandom(20), Pong(MALLORY.peer_id, 1)), ("127.0.0.1", alice.port)
            )
        await stranger.ask(alice, Ping(b""))

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
        payload = await stranger.ask(alice, Store(b"", KEY, good.to_bytes()))
        assert decode_answer(payload, Stored).refusal == ""
        bad = msgspec.structs.replace(good, **{"sequence": good.sequence + 1, **change})

        if reason is None:  # it breaks the format already: no answer at all
            stranger.transport.sendto(
                encode_request(b"i" * 20, Store(b"", KEY, bad.to_bytes())), ("127.0.0.1", alice.port)
            )
            await stranger.ask(alice, Ping(b""))
            assert alice.status().bad_datagrams == 1
        else:
            payload = await stranger.ask(alice, Store(b"", KEY, bad.to_bytes()))
            assert decode_answer(payload, Stored).refusal == reason
            assert alice.status().refusals == {reason: 1}

        assert list(alice._storage) == [good]


async def test_a_stranger_who_does_not_answer_is_in_nobody_s_table():
    async with asyncio.timeout(10), DhtNode(Identity.generate(), wait_timeout_s=0.1) as alice, Stranger() as stranger:
        await stranger.ask(alice, Ping(MALLORY.peer_id))
        pinged_back = decode_request(split_datagram(await stranger.received.get())[2])

        assert pinged_back == Ping(alice.identity.peer_id)
        assert alice.num_peers == 0


async def test_a_stranger_who_answers_under_another_id_than_it_claims_does_not_take_that_id():
    def answer(datagram: bytes) -> bytes | None:
        kind, message_id, _ = split_datagram(datagram)
        return encode_answer(message_id, Pong(MALLORY.peer_id, 1)) if kind == b"\x00" else None

    claimed = os.urandom(20)
    async with asyncio.timeout(10), DhtNode(Identity.generate()) as alice, Stranger(answer) as stranger:
        await stranger.ask(alice, Ping(claimed))
        await stranger.received.get()  # the ping back
        await stranger.ask(alice, Ping(b""))

        assert claimed not in {contact.node_id for contact in alice._protocol.neighbourhood.contacts()}


async def test_a_contact_s_id_cannot_be_taken_over_while_it_answers():
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate()) as alice,
        DhtNode(Identity.generate(), bootstrap=[alice.address]) as bob,
        Stranger() as stranger,
    ):
        await bob.store(KEY, b"value", 60)
        await stranger.ask(alice, Ping(bob.identity.peer_id))
        await stranger.ask(alice, Ping(b""))
        await alice.get(KEY)

        assert [contact.port for contact in alice._protocol.neighbourhood.contacts()] == [bob.port]


@pytest.mark.parametrize("kind_of_lie", ["forged", "garbage", "endless", "old", "silence"])
async def test_a_lying_peer_does_not_hide_or_change_what_honest_ones_hold(kind_of_lie: str):
    async with asyncio.timeout(20), DhtNode(Identity.generate(), wait_timeout_s=0.2) as alice:
        async with DhtNode(Identity.generate(), bootstrap=[alice.address], wait_timeout_s=0.2) as bob:
            await bob.store(KEY, b"value", 60)
            (true,) = list(alice._storage)

        def lie(datagram: bytes) -> bytes | None:
            kind, message_id, payload = split_datagram(datagram)
            if kind != b"\x00" or not isinstance(request := decode_request(payload), FindValue):
                return None
            forged = msgspec.structs.replace(true, value=b"false", sequence=true.sequence + 1).to_bytes()
            after = (int.from_bytes(request.after, "big") + 1).to_bytes(32, "big")
            return {
                "forged": encode_answer(message_id, Values(MALLORY.peer_id, (forged,) * 10, b"", ())),
                "garbage": b"\x01" + message_id + b"\xc1" * 100,
                "endless": encode_answer(message_id, Values(MALLORY.peer_id, (forged,), after, ())),
                "old": encode_answer(
                    message_id, Values(MALLORY.peer_id, (), b"", ((MALLORY.peer_id, "127.0.0.1", 9),))
                ),
                "silence": None,
            }[kind_of_lie]

        async with Stranger(lie) as liar:
            alice._protocol.neighbourhood.answered(liar.contact, 0.0)

            assert await alice.get(KEY) == [true]
            assert liar.received.qsize() <= 40


async def test_full_buckets_make_the_table_ask_its_oldest_contact_without_a_stray_task():
    """The package's table calls `ensure_future(protocol.call_ping(...))` and forgets the task: ours is kept."""
    async with asyncio.timeout(10), DhtNode(Identity.generate(), wait_timeout_s=0.1) as alice:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            before = len(asyncio.all_tasks())
            for number in range(400):
                node_id = (number + (1 << 159)).to_bytes(20, "big")
                alice._protocol.neighbourhood.answered(Contact(node_id, "127.0.0.1", port), 0.0)
            assert len(asyncio.all_tasks()) <= before + 1
