"""Requests of ours that are under way: sent, sent again, answered or given up. Lives on one event loop.

A question outlives who asked it: a lookup that needs no more answers leaves, and the peer is still found to be alive or
silent. What a peer takes to answer decides when to send again; when it counts as silent does not, since a stall of its
process, or of ours, is no death.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

from learning_at_home.dht.address_proofs import FIRST_REQUEST_BYTES, HeldTokens
from learning_at_home.dht.contacts import Address, Contact
from learning_at_home.dht.datagrams import (
    ID_BYTES,
    NO_TOKEN,
    OVERHEAD_BYTES,
    ROOM_BYTES,
    Datagram,
    is_genuine,
    sealed_parts,
)
from learning_at_home.dht.messages import (
    PING_BYTES,
    Answer,
    AnswerT,
    Ping,
    Pong,
    Request,
    decode_answer,
    encode_request,
)
from learning_at_home.dht.pair_keys import PairKeys
from learning_at_home.dht.parts import MAX_PARTS, AnswerParts
from learning_at_home.dht.round_trips import RoundTrips
from learning_at_home.errors import WireError

MAX_OUTSTANDING = 1_024  # those of the dead stay for the whole timeout; the others wait for their turn
MAX_SENT = 3  # of one request; at 5 % loss each way one in a thousand then finds a living peer silent
MAX_HEARD = MAX_SENT * MAX_PARTS  # datagrams of answers that are looked at per question: each may be of another key
MAX_FORGED = 3  # answers with a wrong MAC that are looked at per question: each may cost a Diffie-Hellman
STALL_S = 0.1  # a timer this late means that we were not looking: the answer may lie unread in the socket


@dataclass(frozen=True, slots=True)
class Reply(Generic[AnswerT]):
    """An answer, and who proved to have given it."""

    contact: Contact
    answer: AnswerT


class Listener(Protocol):
    """Who is told what became of a question, whether or not somebody still waits."""

    def on_answer(self, contact: Contact, expected_key: bytes | None) -> None: ...

    def on_overdue(self, address: Address) -> None: ...

    def on_silence(self, address: Address, expected_key: bytes | None) -> None: ...


class _Question(Generic[AnswerT]):
    __slots__ = (
        "address",
        "answer",
        "datagrams",
        "expected_key",
        "first_sent_s",
        "kind",
        "num_forged",
        "num_heard",
        "num_sent",
        "parts",
        "stalled",
        "timer",
        "work_s",
    )

    def __init__(
        self,
        address: Address,
        datagrams: list[bytes],
        kind: type[AnswerT],
        expected_key: bytes | None,
        answer: asyncio.Future[Reply[AnswerT] | None],
        work_s: float,
    ) -> None:
        self.address = address
        self.datagrams = datagrams
        self.kind = kind
        self.expected_key = expected_key
        self.answer = answer
        self.work_s = work_s
        self.parts = AnswerParts()
        self.num_sent = 0
        self.num_forged = 0
        self.num_heard = 0
        self.first_sent_s = 0.0
        self.stalled = False
        self.timer: asyncio.TimerHandle | None = None


class Questions:
    """`request_kind`: see datagrams.py. `counters`: timeouts, resent, bad_macs and bad_datagrams are counted there."""

    def __init__(
        self,
        send: Callable[[bytes, Address], bool],
        listener: Listener,
        pair_keys: PairKeys,
        request_kind: int,
        round_trips: RoundTrips,
        counters: Counter[str],
        timeout_s: float,
    ) -> None:
        """`send` returns whether the socket is open."""
        self._send = send
        self._listener = listener
        self._pair_keys = pair_keys
        self._request_kind = request_kind
        self._round_trips = round_trips
        self._counters = counters
        self._timeout_s = timeout_s
        self._tokens = HeldTokens()
        self._open: dict[bytes, _Question[Answer]] = {}
        self._given_up: OrderedDict[bytes, tuple[Address, bytes | None]] = OrderedDict()  # an answer may still come
        self._slots = asyncio.Semaphore(MAX_OUTSTANDING)

    async def ask(
        self, address: Address, public_key: bytes | None, request: Request, kind: type[AnswerT], work_s: float = 0.0
    ) -> Reply[AnswerT] | None:
        """The answer of the peer there; None when there was none in time, none that makes sense, or another peer's.

        `work_s`: what the request may take its receiver to do, more than others; it is sent again that much later.
        Without a public key whoever is there may answer. Only a ping may be sent so, for it proves nothing of us. A
        request of several datagrams is heard only from proven addresses: a ping proves ours, if need be.
        """
        loop = asyncio.get_running_loop()
        message = encode_request(request)
        is_unheard = len(message) > ROOM_BYTES and not self.is_proven_to(address, public_key)
        if is_unheard and await self.ask(address, public_key, Ping(), Pong) is None:
            return None
        try:
            pair_key = None if public_key is None else self._pair_keys.of(public_key)
        except WireError:
            self._listener.on_silence(address, public_key)
            return None
        await self._slots.acquire()  # released by _close
        message_id = os.urandom(ID_BYTES)
        waiting: asyncio.Future[Reply[AnswerT] | None] = loop.create_future()
        token = self._tokens.of(address, public_key, loop.time())
        if token is None:  # then an answer may be as long as a datagram only if the request is longer
            least_bytes = PING_BYTES if isinstance(request, Ping) else FIRST_REQUEST_BYTES - OVERHEAD_BYTES
            message = encode_request(request, least_bytes)
        own_key = self._pair_keys.own_public_key
        asked = Datagram(self._request_kind, message_id, own_key, message, token or NO_TOKEN)
        question = _Question(address, sealed_parts(asked, pair_key), kind, public_key, waiting, work_s)
        question.first_sent_s = loop.time()
        self._open[message_id] = question  # type: ignore[assignment]  # an AnswerT is an Answer
        self._send_again(loop, message_id)
        return await waiting

    def is_proven_to(self, address: Address, public_key: bytes | None) -> bool:
        """Whether this peer knows that we hear at our address."""
        return self._tokens.of(address, public_key, asyncio.get_running_loop().time()) is not None

    def on_answer(self, datagram: Datagram, data: bytes) -> None:
        """An answer came; one to no open question means nothing, and neither does one with a wrong MAC."""
        question = self._open.get(datagram.message_id)  # the random bytes are known to nobody but the peer asked
        if question is None:
            self._on_late_answer(datagram, data)
            return
        if question.num_forged >= MAX_FORGED or question.num_heard >= MAX_HEARD:
            return
        question.num_heard += 1
        if not self._is_genuine(datagram, data):
            question.num_forged += 1
            self._counters["bad_macs"] += 1
            return
        self._tokens.note(question.address, datagram.sender, datagram.token, question.answer.get_loop().time())
        try:
            message = question.parts.add(datagram.part, datagram.message)
            if message is None:
                return
            answer = decode_answer(message, question.kind)
        except WireError:
            self._counters["bad_datagrams"] += 1
            self._fail(datagram.message_id)
            return
        if question.num_sent == 1:
            self._round_trips.note(question.address, question.answer.get_loop().time() - question.first_sent_s)
        self._close(datagram.message_id)
        contact = Contact(datagram.sender, *question.address)
        self._listener.on_answer(contact, question.expected_key)
        _tell(question, Reply(contact, answer) if question.expected_key in (None, datagram.sender) else None)

    def _on_late_answer(self, datagram: Datagram, data: bytes) -> None:
        """After its time it brings nothing to who asked, but its peer is not silent."""
        asked = self._given_up.pop(datagram.message_id, None)
        if asked is not None and self._is_genuine(datagram, data):
            address, expected_key = asked
            self._tokens.note(address, datagram.sender, datagram.token, asyncio.get_running_loop().time())
            self._listener.on_answer(Contact(datagram.sender, *address), expected_key)

    def _is_genuine(self, datagram: Datagram, data: bytes) -> bool:
        try:
            return is_genuine(data, self._pair_keys.of(datagram.sender))
        except WireError:
            return False

    def close(self) -> None:
        """The socket is gone; nobody is to blame."""
        for message_id in list(self._open):
            _tell(self._close(message_id), None)

    def _send_again(self, loop: asyncio.AbstractEventLoop, message_id: bytes) -> None:
        question = self._open[message_id]
        if not all(self._send(datagram, question.address) for datagram in question.datagrams):
            _tell(self._close(message_id), None)
            return
        if question.num_sent:
            self._counters["resent"] += 1
            self._round_trips.note_late()
        question.num_sent += 1
        if question.num_sent == MAX_SENT:
            self._listener.on_overdue(question.address)
        self._arm(loop, message_id, question)

    def _arm(self, loop: asyncio.AbstractEventLoop, message_id: bytes, question: _Question[Answer]) -> None:
        ends_s = question.first_sent_s + self._timeout_s
        due_s = ends_s
        if question.num_sent < MAX_SENT:
            patience_s = min(self._round_trips.patience_s(question.address), self._timeout_s / 4)
            due_s = min(ends_s, loop.time() + question.work_s + patience_s * 2.0 ** (question.num_sent - 1))
        question.timer = loop.call_at(due_s, self._on_timer, loop, message_id, due_s)

    def _on_timer(self, loop: asyncio.AbstractEventLoop, message_id: bytes, due_s: float) -> None:
        question = self._open[message_id]
        now = loop.time()
        if now > due_s + STALL_S and not question.stalled:  # look into the socket first
            question.stalled = True
            question.first_sent_s += now - due_s
            question.timer = loop.call_at(now + STALL_S, self._on_timer, loop, message_id, now + STALL_S)
        elif question.num_sent < MAX_SENT and now < question.first_sent_s + self._timeout_s:
            self._send_again(loop, message_id)
        else:
            self._counters["timeouts"] += 1
            self._given_up[message_id] = (question.address, question.expected_key)
            if len(self._given_up) > MAX_OUTSTANDING:
                self._given_up.popitem(last=False)
            self._fail(message_id)

    def _fail(self, message_id: bytes) -> None:
        question = self._close(message_id)
        self._tokens.forget(question.address, question.expected_key)
        self._listener.on_silence(question.address, question.expected_key)
        _tell(question, None)

    def _close(self, message_id: bytes) -> _Question[Answer]:
        question = self._open.pop(message_id)
        if question.timer is not None:
            question.timer.cancel()
        self._slots.release()
        return question


def _tell(question: _Question[Answer], reply: Reply[Answer] | None) -> None:
    if not question.answer.done():
        question.answer.set_result(reply)
