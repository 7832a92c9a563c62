"""The DHT's remote calls over UDP: the package's protocol with our arguments, checks, storage and timeouts. Async.

Of `kademlia` and `rpcudp` this keeps the framing, the names and the routing table. A datagram is decoded and answered
in one synchronous step, without a task of its own: garbage is counted and dropped, it cannot raise into the loop.

A peer becomes a contact only after it answered a request of ours under the id that it claims, so that a datagram with
a forged sender puts nobody into the table. That the id is the hash of a key which the peer holds is *not* proven yet.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from learning_at_home.clock import Clock
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.contacts import Address, Contact, is_worth_asking
from learning_at_home.dht.messages import (
    MAX_NEIGHBOURS,
    MAX_PAGE_BYTES,
    MAX_SLOT_PAGE_BYTES,
    REQUEST,
    Answer,
    FindNode,
    FindSlots,
    FindValue,
    Neighbour,
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
    split_datagram,
)
from learning_at_home.dht.neighbourhood import Neighbourhood
from learning_at_home.dht.questions import Questions
from learning_at_home.dht.records import Record, Refusal
from learning_at_home.dht.round_trips import RoundTrips
from learning_at_home.dht.slots import SlotStorage
from learning_at_home.dht.storage import RecordStorage
from learning_at_home.errors import WireError

log = logging.getLogger(__name__)

WAIT_TIMEOUT_S = 1.0  # three times a slow intercontinental round trip
MAX_CHECKS = 64  # strangers being pinged back at once; further ones are pinged when they come again
MAX_UNSENT_BYTES = 1 << 20  # answers are dropped, as on a busy line, rather than pile up in front of a full socket
MAX_CLOCKS = 64  # peers whose time hints are remembered


class DhtProtocol(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    """One UDP socket of the DHT. `spawn` runs a short coroutine in the owner's task group."""

    def __init__(
        self,
        node_id: bytes,
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
        super().__init__(Node(node_id), storage, k)
        self.node_id = node_id
        self.records = storage
        self.slots = slots
        self.counters: Counter[str] = Counter()  # bad_datagrams, timeouts, requests, resent
        self.neighbourhood = Neighbourhood(node_id, self.router, limits)
        self.limits = limits
        self.closed = asyncio.Event()
        self._clock = clock
        self._k = k
        self._client_only = client_only
        self._spawn = spawn
        self._on_new_contact = on_new_contact
        self._round_trips = RoundTrips()
        self._questions = Questions(self._send, self, self._round_trips, self.counters, wait_timeout_s)
        self._checks: set[Address] = set()
        self._clock_offsets_ms: OrderedDict[Address, int] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        """rpcudp makes a remote call of every unknown attribute; here a typing error stays one."""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # -- the socket

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        sender: Address = (addr[0], addr[1])  # an IPv6 address has two more elements
        try:
            kind, message_id, payload = split_datagram(data)
            if kind == REQUEST:
                if not self._client_only:
                    self._answer_request(sender, message_id, decode_request(payload))
                return
        except WireError as error:
            self.counters["bad_datagrams"] += 1
            log.debug("dropped a datagram of %d bytes from %s: %s", len(data), sender, error)
            return
        self._questions.on_payload(message_id, payload)

    def error_received(self, exc: OSError) -> None:
        log.debug("the DHT's socket: %s", exc)  # an ICMP "port unreachable" of some peer; its request times out

    def connection_lost(self, exc: Exception | None) -> None:
        self._questions.close()
        self.closed.set()

    # -- what other peers ask

    def _answer_request(self, sender: Address, message_id: bytes, request: Request) -> None:
        self.counters["requests"] += 1
        match request:
            case Ping():
                answer: Answer = self.rpc_ping(sender, request.sender)
            case FindNode():
                answer = self.rpc_find_node(sender, request.sender, request.target)
            case FindValue():
                answer = self.rpc_find_value(sender, request.sender, request.key, request.after)
            case Store():
                answer = self.rpc_store(sender, request.sender, request.key, request.record)
            case StoreSlots():
                answer = self.rpc_store_slots(sender, request)
            case FindSlots():
                answer = self.rpc_find_slots(sender, request)
        if self.transport.get_write_buffer_size() < MAX_UNSENT_BYTES:
            self.transport.sendto(encode_answer(message_id, answer), sender)

    def rpc_ping(self, sender: Address, nodeid: bytes) -> Pong:
        self._heard_from(sender, nodeid)
        return Pong(self.node_id, self._wall_ms())

    def rpc_find_node(self, sender: Address, nodeid: bytes, key: bytes) -> Nodes:
        self._heard_from(sender, nodeid)
        return Nodes(self.node_id, self._neighbours(sender, nodeid, key))

    def rpc_find_value(self, sender: Address, nodeid: bytes, key: bytes, after: bytes) -> Values:
        """A page of the records after the publisher `after`; with the first page also who is closer to the key."""
        self._heard_from(sender, nodeid)
        page = self.records.page(key, after, MAX_PAGE_BYTES, self._wall_ms())
        neighbours = () if after else self._neighbours(sender, nodeid, key)
        return Values(self.node_id, page.records, page.more, neighbours)

    def rpc_store(self, sender: Address, nodeid: bytes, key: bytes, value: bytes) -> Stored:
        self._heard_from(sender, nodeid)
        now_ms = self._wall_ms()
        try:
            record = Record.from_bytes(value)
        except WireError:
            record = None
        if record is None or record.key != key:
            self.records.refusals[Refusal.MALFORMED.value] += 1
            return Stored(self.node_id, Refusal.MALFORMED.value, now_ms)
        refusal = self.records.put(record, now_ms)
        return Stored(self.node_id, refusal.value if refusal else "", now_ms)

    def rpc_store_slots(self, sender: Address, request: StoreSlots) -> SlotsStored:
        """Under each of the names a refusal, or nothing."""
        self._heard_from(sender, request.sender)
        now_ms = self._wall_ms()
        try:
            record = Record.from_bytes(request.record)
        except WireError:
            self.slots.refusals[Refusal.MALFORMED.value] += 1
            return SlotsStored(self.node_id, (Refusal.MALFORMED.value,) * len(request.names), now_ms)
        refusals = (self.slots.put(record, name, now_ms) for name in request.names)
        return SlotsStored(self.node_id, tuple(refusal.value if refusal else "" for refusal in refusals), now_ms)

    def rpc_find_slots(self, sender: Address, request: FindSlots) -> SlotsFound:
        self._heard_from(sender, request.sender)
        page = self.slots.page(
            request.key, request.first, request.wanted, request.known, MAX_SLOT_PAGE_BYTES, self._wall_ms()
        )
        neighbours = self._neighbours(sender, request.sender, request.key)
        return SlotsFound(self.node_id, page.lives, page.records, page.has_more, neighbours)

    def _neighbours(self, sender: Address, nodeid: bytes, key: bytes) -> tuple[Neighbour, ...]:
        closest = self.neighbourhood.closest(key, self._k + 1, self._clock.monotonic_s())
        others = [contact for contact in closest if contact.node_id != nodeid and contact.address != sender]
        return tuple((contact.node_id, contact.ip, contact.port) for contact in others[:MAX_NEIGHBOURS])

    # -- what we ask

    async def ping_address(self, address: Address, expected_id: bytes | None = None) -> Pong | None:
        answer = await self._questions.ask(address, Ping(self._sender), Pong, expected_id)
        if answer is not None:
            self._note_clock(address, answer.wall_ms)
        return answer

    async def call_find_node(self, contact: Contact, target: bytes) -> list[Contact] | None:
        answer = await self._questions.ask(contact.address, FindNode(self._sender, target), Nodes, contact.node_id)
        return None if answer is None else self._told(answer.neighbours, contact.address)

    async def call_find_value(self, contact: Contact, key: bytes, after: bytes) -> tuple[Values, list[Contact]] | None:
        answer = await self._questions.ask(
            contact.address, FindValue(self._sender, key, after), Values, contact.node_id
        )
        return None if answer is None else (answer, self._told(answer.neighbours, contact.address))

    async def call_store(self, contact: Contact, record: Record) -> str | None:
        """Empty when the peer holds the record now, else its reason; None when it did not answer."""
        request = Store(self._sender, record.key, record.to_bytes())
        answer = await self._questions.ask(contact.address, request, Stored, contact.node_id)
        if answer is None:
            return None
        self._note_clock(contact.address, answer.wall_ms)
        return answer.refusal

    async def call_store_slots(self, contact: Contact, record: Record, names: Sequence[str]) -> tuple[str, ...] | None:
        """For each name what call_store gives; None when the peer did not answer."""
        request = StoreSlots(self._sender, record.to_bytes(), tuple(names))
        answer = await self._questions.ask(contact.address, request, SlotsStored, contact.node_id)
        if answer is None or len(answer.refusals) != len(names):
            return None
        self._note_clock(contact.address, answer.wall_ms)
        return answer.refusals

    async def call_find_slots(
        self, contact: Contact, key: bytes, first: int, wanted: tuple[int, ...] | None, known: bytes
    ) -> tuple[SlotsFound, list[Contact]] | None:
        request = FindSlots(self._sender, key, first, wanted, known)
        answer = await self._questions.ask(contact.address, request, SlotsFound, contact.node_id)
        return None if answer is None else (answer, self._told(answer.neighbours, contact.address))

    def on_answer(self, address: Address, expected_id: bytes | None, answer: Answer) -> None:
        """A peer answered a question of ours."""
        if expected_id is not None and answer.node_id != expected_id:  # another peer has this address now
            self.neighbourhood.remove(Contact(expected_id, *address))
        contact = Contact(answer.node_id, *address)
        if self.neighbourhood.answered(contact, self._clock.monotonic_s()):
            self._on_new_contact(contact)

    def on_overdue(self, address: Address) -> None:
        """A peer was asked for the last time, and may still answer."""
        self.neighbourhood.overdue(address, self._clock.monotonic_s())

    def on_silence(self, address: Address, expected_id: bytes | None) -> None:
        """A peer did not answer a question of ours, or answered garbage."""
        self.neighbourhood.failed(address, expected_id, self._clock.monotonic_s())

    def patience_s(self, contact: Contact) -> float:
        """After how long without an answer it is time to ask somebody else."""
        return self._round_trips.patience_s(contact.address)

    def round_trip_s(self, contact: Contact) -> float | None:
        """What it takes to answer, smoothed."""
        return self._round_trips.mean_s(contact.address)

    def _send(self, datagram: bytes, address: Address) -> bool:
        if self.transport.is_closing():
            return False
        self.transport.sendto(datagram, address)
        return True

    def _told(self, neighbours: tuple[Neighbour, ...], teller: Address) -> list[Contact]:
        """Who of those that a peer told us of is worth a question now."""
        now = self._clock.monotonic_s()
        return [
            contact
            for contact in contacts_of(neighbours)
            if is_worth_asking(contact, teller) and not self.neighbourhood.is_silent(contact.address, now)
        ]

    # -- strangers, clocks

    def call_ping(self, node: Node) -> asyncio.Future[None]:
        """The package's table asks for this when a bucket is full, to see whether its oldest contact still lives.

        It hands what it gets to `ensure_future` and forgets it: hence a future that is done, and a ping of our own.
        """
        self._check(Contact(node.id, node.ip, node.port), None)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _heard_from(self, sender: Address, node_id: bytes) -> None:
        """A request came in under this id: note that a contact lives, ping a stranger back."""
        if not node_id or node_id == self.node_id:
            return
        known = self.neighbourhood.find(node_id)
        if known is not None and known.address == sender:
            self.neighbourhood.spoke(sender)
        elif not self.neighbourhood.is_silent(sender, self._clock.monotonic_s()):
            self._check(known, Contact(node_id, *sender))

    def _check(self, known: Contact | None, stranger: Contact | None) -> None:
        asked = stranger or known
        if asked is not None and asked.address not in self._checks and len(self._checks) < MAX_CHECKS:
            self._checks.add(asked.address)
            self._spawn(self._ping_back(asked.address, known, stranger))

    async def _ping_back(self, asked: Address, known: Contact | None, stranger: Contact | None) -> None:
        """Let a stranger into the table if it answers; one that has a contact's id only if that contact is gone."""
        try:
            if known is not None and await self.ping_address(known.address, known.node_id) is not None:
                return
            if stranger is not None:
                if known is not None:
                    self.neighbourhood.remove(known)
                await self.ping_address(stranger.address, stranger.node_id)
        finally:
            self._checks.discard(asked)

    def clock_offset_s(self) -> float | None:
        """What this machine's wall clock lacks, by the median of the peers' time hints; None without any."""
        return statistics.median(self._clock_offsets_ms.values()) / 1000 if self._clock_offsets_ms else None

    def _note_clock(self, address: Address, wall_ms: int) -> None:
        self._clock_offsets_ms[address] = wall_ms - self._wall_ms()
        self._clock_offsets_ms.move_to_end(address)
        if len(self._clock_offsets_ms) > MAX_CLOCKS:
            self._clock_offsets_ms.popitem(last=False)

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

    @property
    def _sender(self) -> bytes:
        return b"" if self._client_only else self.node_id
