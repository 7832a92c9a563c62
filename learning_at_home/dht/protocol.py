"""The DHT's remote calls over UDP: the package's protocol with our arguments, checks, storage and timeouts. Async.

Of `kademlia` and `rpcudp` this keeps the framing, the names and the routing table. A datagram is decoded and answered
in one synchronous step, without a task of its own: garbage is counted and dropped, it cannot raise into the loop.

A peer becomes a contact only after it answered a request of ours, with a MAC that only the holder of its key can make:
its id is the hash of that key, and a datagram with a forged sender puts nobody into the table.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from learning_at_home.clock import Clock
from learning_at_home.dht import answers
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.address_proofs import TokenIssuer, room_for_answer
from learning_at_home.dht.clock_offsets import ClockOffsets
from learning_at_home.dht.contacts import Address, Contact, is_worth_asking, others_than
from learning_at_home.dht.datagrams import (
    ANSWER,
    CLIENT_ONLY,
    REQUEST,
    Datagram,
    claims_proof,
    is_genuine,
    read,
    sealed_parts,
)
from learning_at_home.dht.messages import (
    MAX_NEIGHBOURS,
    READ_NEIGHBOURS,
    Answer,
    FindNode,
    FindSlots,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Request,
    SlotsFound,
    SlotsStored,
    Store,
    Stored,
    StoreSlots,
    Values,
    contacts_of,
    decode_request,
    encode_answer,
    neighbours_of,
)
from learning_at_home.dht.neighbourhood import Neighbourhood
from learning_at_home.dht.pair_keys import PairKeys
from learning_at_home.dht.parts import WHOLE, RequestParts
from learning_at_home.dht.questions import Questions, Reply
from learning_at_home.dht.rate_limits import RateLimits
from learning_at_home.dht.records import Record, Refusal
from learning_at_home.dht.round_trips import RoundTrips
from learning_at_home.dht.slots import SlotStorage
from learning_at_home.dht.storage import RecordStorage
from learning_at_home.errors import WireError
from learning_at_home.identity import Identity, peer_id

log = logging.getLogger(__name__)

WAIT_TIMEOUT_S = 1.0  # three times a slow intercontinental round trip
SLOTS_WORK_S = 0.0005  # for each name that a record is stored under: ten times what it takes
MAX_CHECKS = 64  # strangers being pinged back at once; further ones are pinged when they come again
MAX_UNSENT_BYTES = 1 << 20  # answers are dropped, as on a busy line, rather than pile up in front of a full socket


class DhtProtocol(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    """One UDP socket of the DHT. `spawn` runs a short coroutine in the owner's task group."""

    def __init__(
        self,
        identity: Identity,
        storage: RecordStorage,
        slots: SlotStorage,
        clock: Clock,
        *,
        k: int,
        client_only: bool,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_new_contact: Callable[[Contact], None],
        limits: BlockLimits,
        wait_timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        self.node_id = identity.peer_id
        super().__init__(Node(self.node_id), storage, k)
        self.records = storage
        self.slots = slots
        self.counters: Counter[str] = Counter()  # named where they are counted: here, in Questions and in RequestParts
        self.neighbourhood = Neighbourhood(self.node_id, self.router, limits)
        self.limits = limits
        self._rate_limits = RateLimits(limits)
        self.closed = asyncio.Event()
        self._clock = clock
        self._client_only = client_only
        self._spawn = spawn
        self._on_new_contact = on_new_contact
        self.round_trips = RoundTrips()
        self._pair_keys = PairKeys(identity)
        self._token_issuer = TokenIssuer()
        self._request_parts = RequestParts(self.counters)
        request_kind = REQUEST | CLIENT_ONLY if client_only else REQUEST
        self._questions = Questions(
            self._send, self, self._pair_keys, request_kind, self.round_trips, self.counters, wait_timeout_s
        )
        self._checks: set[Address] = set()
        self._clock_offsets = ClockOffsets(clock)

    def distance(self, target: bytes) -> int:
        """Of this peer's own id."""
        own: int = self.source_node.long_id
        return own ^ int.from_bytes(target, "big")

    def __getattr__(self, name: str) -> Any:
        """rpcudp makes a remote call of every unknown attribute; here a typing error stays one."""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # -- the socket

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        sender: Address = (addr[0], addr[1])  # an IPv6 address has two more elements
        try:
            datagram = read(data)
            if datagram.is_answer:
                self._questions.on_answer(datagram, data)
            elif not self._client_only:
                self._on_request(sender, datagram, data)
        except WireError as error:
            self.counters["bad_datagrams"] += 1
            log.debug("dropped a datagram of %d bytes from %s: %s", len(data), sender, error)

    def error_received(self, exc: OSError) -> None:
        log.debug("the DHT's socket: %s", exc)  # an ICMP "port unreachable" of some peer; its request times out

    def connection_lost(self, exc: Exception | None) -> None:
        self._questions.close()
        self.closed.set()

    # -- what other peers ask

    def _on_request(self, address: Address, datagram: Datagram, data: bytes) -> None:
        """Answer it, if it comes from the peer that it names; a ping proves nothing and need not. Raises WireError."""
        is_heard = self._token_issuer.proves(datagram.token, datagram.sender, address, self._clock.monotonic_s())
        if not self._admits(address, is_heard, 1):
            return
        pair_key = self._pair_keys.of(datagram.sender)
        is_proven = claims_proof(data)
        if is_proven and not is_genuine(data, pair_key):
            self.counters["bad_macs"] += 1
            return
        message = self._whole_request(address, datagram, is_heard and is_proven)
        if message is None:
            return
        request = decode_request(message)
        if not is_proven and not isinstance(request, Ping):
            raise WireError("a DHT request without a proof of its sender")
        if isinstance(request, FindNode) and not self._admits(address, is_heard, len(request.each()) - 1):
            return
        self.counters["requests"] += 1
        asker = Contact(datagram.sender, *address)
        if is_proven and not datagram.kind & CLIENT_ONLY:
            self._heard_from(asker)
        room_bytes = room_for_answer(len(data), is_heard)
        num_claimed = self.slots.num_claimed
        answer = self._answer(asker, request, room_bytes)
        self._rate_limits.charge(address[0], is_heard, self.slots.num_claimed - num_claimed)
        self._send_answer(asker, datagram.message_id, answer, room_bytes)

    def _admits(self, address: Address, is_heard: bool, count: int) -> bool:
        """Whether so much is to be answered: one for each datagram, and for each target beyond the first."""
        admitted = self._rate_limits.admits(address[0], is_heard, self._clock.monotonic_s(), count)
        self.counters["limited"] += not admitted
        return admitted

    def _whole_request(self, address: Address, datagram: Datagram, is_heard: bool) -> bytes | None:
        """The message, None while parts of it are missing. Raises WireError for a part of one who may not be there."""
        if datagram.part == WHOLE:
            return datagram.message
        if not is_heard:
            raise WireError("a part of a DHT request from an address that is not proven")
        sent = (datagram.sender, datagram.message_id)
        return self._request_parts.add(address[0], sent, datagram.part, datagram.message, self._clock.monotonic_s())

    def _send_answer(self, asker: Contact, message_id: bytes, answer: Answer, room_bytes: int) -> None:
        """Not one that is longer than it may be, nor more than the socket takes."""
        message = encode_answer(answer)
        if len(message) > room_bytes or self.transport.get_write_buffer_size() >= MAX_UNSENT_BYTES:
            self.counters["unsent"] += 1
            return
        token = self._token_issuer.token(asker.public_key, asker.address, self._clock.monotonic_s())
        said = Datagram(ANSWER, message_id, self._pair_keys.own_public_key, message, token)
        for data in sealed_parts(said, self._pair_keys.of(asker.public_key)):
            self.transport.sendto(data, asker.address)

    def _answer(self, asker: Contact, request: Request, room_bytes: int) -> Answer:
        """At most of so many bytes, as far as that can be."""
        match request:
            case Ping():
                return Pong(self._wall_ms())
            case FindNode():
                return self.rpc_find_node(asker, request.each(), room_bytes)
            case FindValue():
                return self.rpc_find_value(asker, request, room_bytes)
            case Store():
                return self.rpc_store(request.key, request.record)
            case StoreSlots():
                return self.rpc_store_slots(request)
            case FindSlots():
                return self.rpc_find_slots(asker, request, room_bytes)

    def rpc_find_node(self, asker: Contact, targets: Sequence[bytes], room_bytes: int) -> Nodes:
        most, now = answers.most_neighbours(room_bytes), self._clock.monotonic_s()
        closest = self.neighbourhood.closest_to_any(targets, MAX_NEIGHBOURS + 1, most + 1, now)
        others = others_than(asker, closest)[: MAX_NEIGHBOURS if len(targets) == 1 else most]
        return answers.nodes(neighbours_of(others), room_bytes)

    def rpc_find_value(self, asker: Contact, request: FindValue, room_bytes: int) -> Values:
        """With the first page of records also who is closer to the key."""
        neighbours = () if request.after else self._neighbours(asker, request.key, READ_NEIGHBOURS)
        return answers.values(request, self.records, neighbours, room_bytes, self._wall_ms())

    def rpc_store(self, key: bytes, value: bytes) -> Stored:
        now_ms = self._wall_ms()
        try:
            record = Record.from_bytes(value)
        except WireError:
            record = None
        if record is None or record.key != key:
            self.records.refusals[Refusal.MALFORMED.value] += 1
            return Stored(Refusal.MALFORMED.value, now_ms)
        refusal = self.records.put(record, now_ms)
        return Stored(refusal.value if refusal else "", now_ms)

    def rpc_store_slots(self, request: StoreSlots) -> SlotsStored:
        """Under each of the names a refusal, or nothing."""
        now_ms = self._wall_ms()
        try:
            record = Record.from_bytes(request.record)
        except WireError:
            self.slots.refusals[Refusal.MALFORMED.value] += 1
            return SlotsStored((Refusal.MALFORMED.value,) * len(request.names), now_ms)
        refusals = self.slots.put_many(record, request.names, now_ms)
        return SlotsStored(tuple(refusal.value if refusal else "" for refusal in refusals), now_ms)

    def rpc_find_slots(self, asker: Contact, request: FindSlots, room_bytes: int) -> SlotsFound:
        neighbours = self._neighbours(asker, request.key, READ_NEIGHBOURS)
        return answers.slots_found(request, self.slots, neighbours, room_bytes, self._wall_ms())

    def _neighbours(self, asker: Contact, key: bytes, most: int = MAX_NEIGHBOURS) -> tuple[bytes, ...]:
        closest = self.neighbourhood.closest(key, most + 1, self._clock.monotonic_s())
        return neighbours_of(others_than(asker, closest)[:most])

    # -- what we ask

    async def greet(self, address: Address) -> Contact | None:
        """Whoever answers at an address."""
        reply = await self._ping(address, None)
        return None if reply is None else reply.contact

    async def call_find_node(self, contact: Contact, *targets: bytes) -> list[Contact] | None:
        """Whom the peer knows near each of up to MAX_TARGETS."""
        request = FindNode(b"".join(targets))
        reply = await self._questions.ask(contact.address, contact.public_key, request, Nodes)
        return None if reply is None else self._told(reply.answer.neighbours, contact.address)

    async def call_find_value(self, contact: Contact, key: bytes, after: bytes) -> tuple[Values, list[Contact]] | None:
        reply = await self._questions.ask(contact.address, contact.public_key, FindValue(key, after), Values)
        return None if reply is None else (reply.answer, self._told(reply.answer.neighbours, contact.address))

    async def call_store(self, contact: Contact, record: Record) -> str | None:
        """Empty when the peer holds the record now, else its reason; None when it did not answer."""
        request = Store(record.key, record.to_bytes())
        reply = await self._questions.ask(contact.address, contact.public_key, request, Stored)
        if reply is None:
            return None
        self._clock_offsets.note(contact.address, reply.answer.wall_ms)
        return reply.answer.refusal

    async def call_store_slots(self, contact: Contact, record: Record, names: Sequence[str]) -> tuple[str, ...] | None:
        """For each name what call_store gives; None when the peer did not answer."""
        request = StoreSlots(record.to_bytes(), tuple(names))
        work_s = SLOTS_WORK_S * len(names)
        reply = await self._questions.ask(contact.address, contact.public_key, request, SlotsStored, work_s)
        if reply is None or len(reply.answer.refusals) != len(names):
            return None
        self._clock_offsets.note(contact.address, reply.answer.wall_ms)
        return reply.answer.refusals

    async def call_find_slots(
        self, contact: Contact, key: bytes, first: int, wanted: tuple[int, ...] | None, known: bytes
    ) -> tuple[SlotsFound, list[Contact]] | None:
        request = FindSlots(key, first, wanted, known)
        reply = await self._questions.ask(contact.address, contact.public_key, request, SlotsFound)
        return None if reply is None else (reply.answer, self._told(reply.answer.neighbours, contact.address))

    async def _ping(self, address: Address, public_key: bytes | None) -> Reply[Pong] | None:
        reply = await self._questions.ask(address, public_key, Ping(), Pong)
        if reply is not None:
            self._clock_offsets.note(address, reply.answer.wall_ms)
        return reply

    def on_answer(self, contact: Contact, expected_key: bytes | None) -> None:
        """A peer answered a question of ours."""
        if expected_key not in (None, contact.public_key):  # another peer has this address now
            self.neighbourhood.remove(Contact(expected_key, *contact.address))
        if self.neighbourhood.answered(contact, self._clock.monotonic_s()):
            self._on_new_contact(contact)

    def on_overdue(self, address: Address) -> None:
        """A peer was asked for the last time, and may still answer."""
        self.neighbourhood.overdue(address, self._clock.monotonic_s())

    def on_silence(self, address: Address, expected_key: bytes | None) -> None:
        """A peer did not answer a question of ours, or answered garbage."""
        expected_id = None if expected_key is None else peer_id(expected_key)
        self.neighbourhood.failed(address, expected_id, self._clock.monotonic_s())

    def is_proven_to(self, contact: Contact) -> bool:
        """Whether it knows that we hear at our address: else its answers are one datagram."""
        return self._questions.is_proven_to(contact.address, contact.public_key)

    def patience_s(self, contact: Contact) -> float:
        """After how long without an answer it is time to ask somebody else."""
        return self.round_trips.patience_s(contact.address)

    def round_trip_s(self, contact: Contact) -> float | None:
        """What it takes to answer, smoothed."""
        return self.round_trips.mean_s(contact.address)

    def _send(self, datagram: bytes, address: Address) -> bool:
        if self.transport.is_closing():
            return False
        self.transport.sendto(datagram, address)
        return True

    def _told(self, neighbours: tuple[bytes, ...], teller: Address) -> list[Contact]:
        """Who of those that a peer told us of is worth a question now."""
        told = [contact for contact in contacts_of(neighbours) if is_worth_asking(contact.address, teller)]
        return self.neighbourhood.speaking(told, self._clock.monotonic_s())

    # -- strangers, clocks

    def call_ping(self, node: Node) -> asyncio.Future[None]:
        """The package's table asks for this when a bucket is full, to see whether its oldest contact still lives.

        It hands what it gets to `ensure_future` and forgets it: hence a future that is done, and a ping of our own.
        """
        self._check(node.contact, None)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _heard_from(self, asker: Contact) -> None:
        """A peer proved to have sent this: note that a contact lives, ping a stranger back."""
        if asker.node_id == self.node_id:
            return
        known = self.neighbourhood.find(asker.node_id)
        if known == asker or (known is None and self.neighbourhood.was_greeted(asker, self._clock.monotonic_s())):
            self.neighbourhood.spoke(asker.address)
        elif not self.neighbourhood.is_silent(asker.address, self._clock.monotonic_s()):
            self._check(known, asker)

    def _check(self, known: Contact | None, stranger: Contact | None) -> None:
        asked = stranger or known
        if asked is not None and asked.address not in self._checks and len(self._checks) < MAX_CHECKS:
            self._checks.add(asked.address)
            self._spawn(self._ping_back(asked.address, known, stranger))

    async def _ping_back(self, asked: Address, known: Contact | None, stranger: Contact | None) -> None:
        """Let a stranger into the table if it answers; one that has a contact's id only if that contact is gone."""
        try:
            if known is not None and await self._ping(known.address, known.public_key) is not None:
                return
            if stranger is not None:
                if known is not None:
                    self.neighbourhood.remove(known)
                await self._ping(stranger.address, stranger.public_key)
        finally:
            self._checks.discard(asked)

    def clock_offset_s(self) -> float | None:
        """What this machine's wall clock lacks, by the median of the peers' time hints; None without any."""
        return self._clock_offsets.median_s()

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)
