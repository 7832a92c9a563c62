"""What becomes of a request: sent again, answered, given up; with or without somebody who waits."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from learning_at_home.dht.contacts import Address, Contact
from learning_at_home.dht.datagrams import ANSWER, REQUEST, ROOM_BYTES, Datagram, read, sealed
from learning_at_home.dht.messages import Ping, Pong, encode_answer
from learning_at_home.dht.pair_keys import PairKeys
from learning_at_home.dht.parts import Part
from learning_at_home.dht.questions import MAX_FORGED, MAX_HEARD, MAX_SENT, Questions, Reply
from learning_at_home.dht.round_trips import FIRST_S, RoundTrips
from learning_at_home.identity import Identity
from learning_at_home.testing import run_in_virtual_time

PEER: Address = ("20.0.0.1", 7_000)
OUR_IDENTITY, PEERS_IDENTITY, MALLORY = Identity(b"o" * 32), Identity(b"p" * 32), Identity(b"m" * 32)
TIMEOUT_S = 4.0
PONG = Pong(0)
PEERS_CONTACT = Contact(PEERS_IDENTITY.public_key, *PEER)


class Setting:
    """A socket and a listener that remember. To be made while the loop runs."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began_s = self.loop.time()
        self.is_open = True
        self.sent: list[tuple[float, bytes]] = []
        self.told: list[tuple[str, object]] = []
        self.counters: Counter[str] = Counter()
        self.round_trips = RoundTrips()
        self.pair_keys = PairKeys(OUR_IDENTITY)
        self.questions = Questions(
            self._send, self, self.pair_keys, REQUEST, self.round_trips, self.counters, TIMEOUT_S
        )

    def _send(self, datagram: bytes, address: Address) -> bool:
        if self.is_open:
            self.sent.append((self.loop.time() - self.began_s, datagram))
        return self.is_open

    def on_answer(self, contact: Contact, expected_key: bytes | None) -> None:
        self.told.append(("answer", contact))

    def on_overdue(self, address: Address) -> None:
        self.told.append(("overdue", address))

    def on_silence(self, address: Address, expected_key: bytes | None) -> None:
        self.told.append(("silence", address))

    def ask(self, public_key: bytes | None = PEERS_IDENTITY.public_key) -> asyncio.Task[Reply[Pong] | None]:
        return asyncio.create_task(self.questions.ask(PEER, public_key, Ping(), Pong))

    def answer(
        self, message: bytes = encode_answer(PONG), *, sender: Identity = PEERS_IDENTITY, key: bytes = b""
    ) -> None:
        """To what was sent last. `key`: of the MAC, instead of the right one."""
        asked = read(self.sent[-1][1])
        said = Datagram(ANSWER, asked.message_id, sender.public_key, message)
        data = sealed(said, key or PairKeys(sender).of(asked.sender))
        self.questions.on_answer(read(data), data)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_in_virtual_time(scenario)


def test_one_that_is_not_answered_is_sent_three_times_and_then_its_peer_is_silent():
    async def scenario() -> None:
        setting = Setting()
        assert await setting.ask() is None
        assert [at for at, _ in setting.sent] == pytest.approx([0, FIRST_S, 3 * FIRST_S])
        assert len({datagram for _, datagram in setting.sent}) == 1
        assert setting.loop.time() - setting.began_s == pytest.approx(TIMEOUT_S)
        assert setting.told == [("overdue", PEER), ("silence", PEER)]
        assert setting.counters == {"resent": MAX_SENT - 1, "timeouts": 1}

    run(scenario())


def test_an_answer_ends_it_and_tells_how_long_the_peer_takes():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        setting.answer()
        assert await asked == Reply(PEERS_CONTACT, PONG)
        setting.answer()  # twice: means nothing
        await asyncio.sleep(2 * TIMEOUT_S)
        assert len(setting.sent) == 1
        assert setting.told == [("answer", PEERS_CONTACT)]
        assert setting.round_trips.patience_s(PEER) == pytest.approx(0.3)

    run(scenario())


def test_an_answer_after_a_second_sending_tells_nothing_of_the_way():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(FIRST_S + 0.001)
        setting.answer()
        assert await asked == Reply(PEERS_CONTACT, PONG)
        assert setting.round_trips.patience_s(PEER) == FIRST_S

    run(scenario())


def test_a_question_outlives_who_asked_it():
    async def scenario() -> None:
        setting = Setting()
        left, answered = setting.ask(), setting.ask()
        await asyncio.sleep(0.1)
        left.cancel()
        answered.cancel()
        await asyncio.wait({left, answered})
        setting.answer()
        await asyncio.sleep(TIMEOUT_S)
        assert setting.told == [("answer", PEERS_CONTACT), ("overdue", PEER), ("silence", PEER)]

    run(scenario())


def test_garbage_is_counted_and_is_no_answer():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        setting.answer(b"\xc1")
        assert await asked is None
        assert setting.told == [("silence", PEER)]
        assert setting.counters["bad_datagrams"] == 1

    run(scenario())


def test_parts_of_an_answer_that_never_ends_cost_only_so_many_keys():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        message_id = read(setting.sent[-1][1]).message_id
        for number in range(100):
            sender = Identity(number.to_bytes(32, "big"))
            said = Datagram(ANSWER, message_id, sender.public_key, bytes(ROOM_BYTES), part=Part(0, 2, bytes(8)))
            data = sealed(said, PairKeys(sender).of(OUR_IDENTITY.public_key))
            setting.questions.on_answer(read(data), data)
        assert len(setting.pair_keys._keys) == 1 + MAX_HEARD
        assert await asked is None

    run(scenario())


def test_another_peer_at_the_address_is_told_of_and_is_not_who_was_asked():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        setting.answer(sender=MALLORY)
        assert await asked is None
        assert setting.told == [("answer", Contact(MALLORY.public_key, *PEER))]

    run(scenario())


def test_where_nobody_is_expected_whoever_proves_its_key_is_told():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask(public_key=None)
        await asyncio.sleep(0.1)
        setting.answer()
        assert await asked == Reply(PEERS_CONTACT, PONG)

    run(scenario())


@pytest.mark.parametrize("forgeries", [1, MAX_FORGED - 1])
def test_an_answer_with_a_wrong_mac_is_counted_and_the_right_one_still_taken(forgeries: int):
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        for _ in range(forgeries):
            setting.answer(key=b"x" * 32)
        assert setting.told == []
        setting.answer()
        assert await asked == Reply(PEERS_CONTACT, PONG)
        assert setting.counters["bad_macs"] == forgeries

    run(scenario())


def test_a_peer_whose_key_is_none_is_silent_at_once():
    async def scenario() -> None:
        setting = Setting()
        assert await setting.ask(public_key=bytes(32)) is None
        assert setting.sent == []
        assert setting.told == [("silence", PEER)]

    run(scenario())


def test_when_the_socket_closes_whoever_waits_gets_nothing_and_nobody_is_blamed():
    async def scenario() -> None:
        setting = Setting()
        asked = setting.ask()
        await asyncio.sleep(0.1)
        setting.questions.close()
        setting.is_open = False
        assert await asked is None
        assert await setting.ask() is None
        await asyncio.sleep(2 * TIMEOUT_S)
        assert setting.told == []

    run(scenario())


def test_an_answer_after_its_time_shows_once_that_its_peer_lives():
    async def scenario() -> None:
        setting = Setting()
        assert await setting.ask() is None
        setting.answer(sender=MALLORY, key=b"wrong" * 6)
        assert setting.told == [("overdue", PEER), ("silence", PEER)]

        assert await setting.ask() is None
        setting.answer()
        setting.answer()
        assert setting.told == [("overdue", PEER), ("silence", PEER)] * 2 + [("answer", PEERS_CONTACT)]

    run(scenario())
