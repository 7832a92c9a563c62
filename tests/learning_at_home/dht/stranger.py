"""A socket with a key of its own, that says what it likes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.datagrams import (
    ANSWER,
    CLIENT_ONLY,
    ID_BYTES,
    NO_TOKEN,
    REQUEST,
    Datagram,
    is_genuine,
    read,
    sealed_parts,
)
from learning_at_home.dht.messages import (
    Answer,
    AnswerT,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.pair_keys import PairKeys
from learning_at_home.dht.parts import AnswerParts
from learning_at_home.identity import Identity

MALLORY = Identity(b"m" * 32)


class Stranger(asyncio.DatagramProtocol):
    """`answer`: what it says to a request; bytes are sent as they are, None is silence."""

    def __init__(
        self, answer: Callable[[Request], Answer | bytes | None] = lambda request: None, *, client_only: bool = True
    ) -> None:
        self.received: asyncio.Queue[Datagram] = asyncio.Queue()
        self.num_requests = 0
        self.transport: asyncio.DatagramTransport
        self._answer = answer
        self._kind = REQUEST | CLIENT_ONLY if client_only else REQUEST
        self._pair_keys = PairKeys(MALLORY)
        self._tokens: dict[bytes, bytes] = {}  # by whose they are
        self._parts: dict[bytes, AnswerParts] = {}  # by message id

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        datagram = read(data)
        assert is_genuine(data, self._pair_keys.of(datagram.sender))
        if datagram.is_answer:
            self._tokens[datagram.sender] = datagram.token
            message = self._parts.setdefault(datagram.message_id, AnswerParts()).add(datagram.part, datagram.message)
            if message is not None:
                self.received.put_nowait(datagram._replace(message=message))
            return
        self.received.put_nowait(datagram)
        self.num_requests += 1
        answer = self._answer(decode_request(datagram.message))
        if answer is not None:
            message = answer if isinstance(answer, bytes) else encode_answer(answer)
            said = Datagram(ANSWER, datagram.message_id, MALLORY.public_key, message, b"mallorys")
            for part in sealed_parts(said, self._pair_keys.of(datagram.sender)):
                self.transport.sendto(part, addr)

    async def __aenter__(self) -> Stranger:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        await asyncio.sleep(0)

    @property
    def contact(self) -> Contact:
        return Contact(MALLORY.public_key, *self.transport.get_extra_info("sockname"))

    def sealed_request(self, node: DhtNode, request: Request, message_id: bytes = b"i" * ID_BYTES) -> bytes:
        (data,) = self.sealed_parts(node, request, message_id)
        return data

    def sealed_parts(self, node: DhtNode, request: Request, message_id: bytes, least_bytes: int = 0) -> list[bytes]:
        """With the token that came from the node, if any did."""
        token = self._tokens.get(node.identity.public_key, NO_TOKEN)
        asked = Datagram(self._kind, message_id, MALLORY.public_key, encode_request(request, least_bytes), token)
        return sealed_parts(asked, self._pair_keys.of(node.identity.public_key))

    def send(self, node: DhtNode, data: bytes) -> None:
        self.transport.sendto(data, ("127.0.0.1", node.port))

    async def ask(self, node: DhtNode, request: Request, kind: type[AnswerT]) -> AnswerT:
        """What the node answers."""
        message_id = os.urandom(ID_BYTES)
        for data in self.sealed_parts(node, request, message_id, least_bytes=300):
            self.send(node, data)
        while True:
            datagram = await self.received.get()
            if datagram.is_answer and datagram.message_id == message_id:
                return decode_answer(datagram.message, kind)
