"""A peer of the DHT: what the rest of Learning@home asks of it. Async; lives on one event loop.

Knows nothing of experts: keys and signed records. See docs/decisions/0002-dht-on-kademlia.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from learning_at_home.clock import Clock, SystemClock
from learning_at_home.dht.address_blocks import BlockLimits
from learning_at_home.dht.bootstrap import Bootstrapper
from learning_at_home.dht.contacts import shown_address
from learning_at_home.dht.datagrams import MAX_DATAGRAM_BYTES
from learning_at_home.dht.exchange import Exchange, Found, Held, K
from learning_at_home.dht.peer_cache import PeerCache
from learning_at_home.dht.protocol import WAIT_TIMEOUT_S, DhtProtocol
from learning_at_home.dht.records import (
    KEY_BYTES,
    MAX_LIFE_MS,
    MAX_VALUE_BYTES,
    Record,
    RecordVerifier,
    key_of,
    sign_record,
)
from learning_at_home.dht.slot_exchange import FoundSlots, SlotAsk, SlotExchange
from learning_at_home.dht.slots import NoSlots, SlotRule, SlotStorage
from learning_at_home.dht.storage import RecordStorage
from learning_at_home.dht.upkeep import Upkeep
from learning_at_home.errors import BootstrapFailed, ConfigError, RecordRefused
from learning_at_home.identity import Identity

# asyncio reads each datagram into 256 KiB of fresh memory unless its transport is told less, which takes 20 µs of 25.
RECEIVE_BUFFER_BYTES = 1 << 20  # a hundred full pages may arrive while the loop is busy elsewhere
# A peer that is killed comes back with what it knew when it had run for half as long, or five minutes before.
FIRST_SAVE_PEERS_S, SAVE_PEERS_S = 5.0, 300.0
MAX_REMEMBERED = 4_096  # keys of our own whose last sequence we know; expired ones make room


@dataclass(frozen=True, slots=True)
class DhtStatus:
    """For telemetry and the pages. Counters are totals since the node started."""

    num_peers: int
    num_records: int
    num_bytes: int
    refusals: dict[str, int]  # reason -> records refused, by whoever sent them
    bad_datagrams: int
    timeouts: int
    unanswered_bootstrap: tuple[str, ...]  # "host:port" of those at which nobody answers
    clock_offset_s: float | None  # what this machine's clock lacks, by the median of the peers' time hints


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """An entry of the routing table."""

    node_id: bytes
    address: str  # host:port, UDP
    bucket: int  # its place in the table
    distance_bits: int  # 1: the nearest possible; 160: as far as half of all ids
    round_trip_s: float | None  # smoothed; None while nothing was measured
    answered_ago_s: float | None
    is_silent: bool  # did not answer lately, and is left alone for a moment


class DhtNode:
    """`async with DhtNode(identity, "0.0.0.0", 0, bootstrap=["host:port"]) as node:`

    Entering opens the socket and tries every bootstrap address once (about a second when none answers); those that did
    not answer are tried again in the background for as long as the node lives. Raises ConfigError when it cannot listen
    there, or for what is no address. `client_only`: asks, but holds nothing for others and is not put into their
    tables (a trainer; a peer behind NAT). `slot_rule`: which slots a record fills here; without one none (slots.py).
    `peer_cache`: a file for the peers that it knew, tried at the next start. `one_block`: all peers may share a public
    address block, as in a laboratory; see address_blocks.py.
    """

    def __init__(
        self,
        identity: Identity,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Clock | None = None,
        bootstrap: Sequence[str] = (),
        client_only: bool = False,
        slot_rule: SlotRule | None = None,
        peer_cache: Path | None = None,
        one_block: bool = False,
        wait_timeout_s: float = WAIT_TIMEOUT_S,
    ) -> None:
        self.identity = identity
        self.clock: Clock = clock or SystemClock()
        self._local_address = (host, port)
        self._first_addresses = tuple(bootstrap)
        self._client_only = client_only
        self._peer_cache = None if peer_cache is None else PeerCache(peer_cache)
        limits = BlockLimits(one_block)
        self._verifier = RecordVerifier()
        self._storage = RecordStorage(self._verifier)
        self._slots = SlotStorage(self._verifier, slot_rule or NoSlots())
        self._last_own: dict[bytes, Record] = {}  # key -> what we signed last
        self._protocol = DhtProtocol(
            identity,
            self._storage,
            self._slots,
            self.clock,
            k=K,
            client_only=client_only,
            spawn=lambda work: self._upkeep.spawn(work),
            on_new_contact=lambda contact: self._upkeep.welcome(contact),
            limits=limits,
            wait_timeout_s=wait_timeout_s,
        )
        self._exchange = Exchange(
            self._protocol, self._storage, self._verifier, self.clock, holds_records=not client_only
        )
        self._slot_exchange = SlotExchange(
            self._protocol, self._slots, self._exchange, self.clock, holds_records=not client_only
        )
        self._upkeep = Upkeep(self._protocol, self._exchange, self.clock, self._own_records)

    async def __aenter__(self) -> DhtNode:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(lambda: self._protocol, local_addr=self._local_address)
        except OSError as error:
            words = f"the DHT cannot listen on UDP {shown_address(self._local_address)}: {error.strerror or error}"
            raise ConfigError(words) from error
        self._transport = transport
        transport.max_size = MAX_DATAGRAM_BYTES + 1  # type: ignore[attr-defined]  # see there
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._bound: tuple[str, int] = sock.getsockname()[:2]
        remembered = [] if self._peer_cache is None else self._peer_cache.load()
        self._bootstrapper = Bootstrapper(self._protocol, sock.family, self._upkeep.look_around, remembered)
        ready = asyncio.Event()
        # Not bare: the task is kept, ends in __aexit__, and all others are children of its TaskGroup.
        self._background = asyncio.create_task(self._upkeep.run(ready, self._bootstrapper.run(), self._keep_peers()))
        try:
            await ready.wait()
            await self._bootstrapper.start(self._first_addresses)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def port(self) -> int:
        """The UDP port that it listens on."""
        return self._bound[1]

    @property
    def address(self) -> str:
        """host:port as bound; what other peers on this machine can use as a bootstrap address."""
        return shown_address(self._bound)

    @property
    def num_peers(self) -> int:
        """Contacts in the routing table that are not silent now."""
        now = self.clock.monotonic_s()
        neighbourhood = self._protocol.neighbourhood
        return sum(not neighbourhood.is_silent(contact.address, now) for contact in neighbourhood.contacts())

    def status(self) -> DhtStatus:
        return DhtStatus(
            num_peers=self.num_peers,
            num_records=self._storage.num_records + self._slots.num_records,
            num_bytes=self._storage.num_bytes + self._slots.num_bytes,
            refusals=dict(self._storage.refusals + self._slots.refusals + self._exchange.refusals),
            bad_datagrams=self._protocol.counters["bad_datagrams"],
            timeouts=self._protocol.counters["timeouts"],
            unanswered_bootstrap=self._bootstrapper.unanswered(),
            clock_offset_s=self._protocol.clock_offset_s(),
        )

    def neighbours(self) -> tuple[KnownPeer, ...]:
        """Everyone in the routing table, the nearest to this peer's own id first."""
        protocol, now = self._protocol, self.clock.monotonic_s()
        neighbourhood, own_id = protocol.neighbourhood, protocol.node_id
        known = []
        for contact in sorted(neighbourhood.contacts(), key=lambda contact: contact.distance(own_id)):
            answered_s = neighbourhood.answered_s(contact)
            known.append(
                KnownPeer(
                    node_id=contact.node_id,
                    address=shown_address(contact.address),
                    bucket=neighbourhood.bucket(contact),
                    distance_bits=contact.distance(own_id).bit_length(),
                    round_trip_s=protocol.round_trip_s(contact),
                    answered_ago_s=None if answered_s is None else now - answered_s,
                    is_silent=neighbourhood.is_silent(contact.address, now),
                )
            )
        return tuple(known)

    async def bootstrap(self, addresses: Iterable[str], *, require: bool = False) -> int:
        """How many of these answered; all are tried in parallel, and the silent ones again in the background.

        `require`: raises BootstrapFailed, with each address and what was wrong with it, when none did. Raises
        ConfigError for what is no address.
        """
        return await self._bootstrapper.try_all(addresses, require=require)

    async def store(self, key: bytes, value: bytes, life_s: float) -> int:
        """How many peers hold the value now (this node counts when it is one of them). Signed by this node's identity.

        Raises RecordRefused when the value or its life is out of bounds, or when all who were asked refused it;
        BootstrapFailed when a client-only node reaches no peer. An empty value is a tombstone: use `withdraw`.
        A value that lives longer than two minutes is stored again by this node when its neighbourhood changes.
        """
        return await self.store_record(self._sign(key, value, life_s))

    async def withdraw(self, key: bytes) -> int:
        """Replace what this node stored under the key by a tombstone that lives as long as it would have.

        A shorter tombstone would let anyone who kept the record bring it back.
        """
        return await self.store(key, b"", self._rest_s(key))

    async def store_record(self, record: Record) -> int:
        """The same for a record that is already signed, by whomever."""
        (holders,) = await self.store_many([record])
        return holders

    async def store_many(self, records: Sequence[Record]) -> list[int]:
        """The same for many records, some of which nobody may hold; their closest peers are found in one crawl.

        Raises RecordRefused when one of them is invalid or everybody who was asked refused them all.
        """
        for record in records:
            refusal = self._verifier.refusal(record, self._wall_ms())
            if refusal is not None:
                raise RecordRefused(f"the DHT record is refused: {refusal.value}")
        held = await self._exchange.put_many(records)
        if records:
            self._check_held(held)
        return [one.num_holders for one in held]

    async def store_slots(self, name: str, others: Sequence[str], value: bytes, life_s: float) -> int:
        """How many peers hold the value in slots of the name's key. Signed once, for this key and those of `others`,
        in whose slots it is stored too; what becomes of it there is not told.

        Raises what `store` raises, of the first key.
        """
        return await self._put_slots(self._sign(key_of(name), value, life_s), name, others)

    async def withdraw_slots(self, name: str, others: Sequence[str]) -> int:
        """The same with a tombstone that lives as long as what `store_slots` stored last."""
        key = key_of(name)
        return await self._put_slots(self._sign(key, b"", self._rest_s(key)), name, others)

    async def find_slots(self, asks: Sequence[SlotAsk]) -> list[FoundSlots]:
        """What the slots of these keys hold; one answer for each, in their order."""
        return await self._slot_exchange.find(asks)

    async def get(self, key: bytes) -> list[Record]:
        """Every publisher's newest valid record under the key, tombstones left out, in the order of the publishers."""
        return list((await self.find(key)).records)

    async def find(self, key: bytes) -> Found:
        """`get`, and how many peers answered: an empty answer of nobody is not the same as an empty key."""
        return await self._exchange.find(key)

    async def find_many(self, keys: Iterable[bytes]) -> dict[bytes, Found]:
        """The same for many keys, in one crawl."""
        return await self._exchange.find_many(keys)

    async def _put_slots(self, record: Record, name: str, others: Sequence[str]) -> int:
        held, *_ = await self._slot_exchange.put(record, list(dict.fromkeys((name, *others))))
        self._check_held([held])
        return held.num_holders

    def _check_held(self, held: Sequence[Held]) -> None:
        """Raises RecordRefused or BootstrapFailed when nobody holds anything."""
        if any(one.num_holders for one in held):
            return
        refusals = sum((one.refusals for one in held), Counter[str]())
        if refusals:
            reasons = ", ".join(f"{reason} by {count}" for reason, count in refusals.most_common())
            offset_s = self._protocol.clock_offset_s() or 0.0
            raise RecordRefused(
                f"no peer holds the DHT record: {reasons} (peers' clocks are {offset_s:+.1f} s from this machine's)"
            )
        silent = ", ".join(self._bootstrapper.unanswered()) or "none"
        raise BootstrapFailed(f"no peer of the DHT answered; bootstrap addresses without an answer: {silent}")

    def _sign(self, key: bytes, value: bytes, life_s: float) -> Record:
        """A record of our own, newer than the last under this key. Raises RecordRefused: see `store`."""
        life_ms = int(life_s * 1000)
        if len(key) != KEY_BYTES or len(value) > MAX_VALUE_BYTES or not 0 < life_ms <= MAX_LIFE_MS:
            raise RecordRefused(
                f"a DHT record has a key of {KEY_BYTES} bytes, a value of up to {MAX_VALUE_BYTES:,} bytes and a life of"
                f" up to {MAX_LIFE_MS // 3_600_000} hours; this one has {len(key)}, {len(value):,} and {life_s:.0f} s"
            )
        now_ms = self._wall_ms()
        last = self._last_own.get(key)
        sequence = max(now_ms, last.sequence + 1) if last else now_ms
        record = sign_record(self.identity, key, value, sequence=sequence, expires_ms=now_ms + life_ms)
        self._remember(record, now_ms)
        return record

    def _rest_s(self, key: bytes) -> float:
        """How long what we stored last under the key still lives, within the bounds of a life."""
        last = self._last_own.get(key)
        rest_ms = last.expires_ms - self._wall_ms() + 1 if last else 0
        return min(max(rest_ms, 1_000), MAX_LIFE_MS) / 1000

    async def _close(self) -> None:
        self._background.cancel()
        await asyncio.wait({self._background})
        self._transport.close()
        await self._protocol.closed.wait()
        self._save_peers()

    async def _keep_peers(self) -> None:
        pause_s = FIRST_SAVE_PEERS_S
        while True:
            await asyncio.sleep(pause_s)
            self._save_peers()
            pause_s = min(2 * pause_s, SAVE_PEERS_S)

    def _save_peers(self) -> None:
        """On the loop: some kilobytes into the page cache take less than a thread's start."""
        neighbourhood = self._protocol.neighbourhood
        known = [(neighbourhood.answered_s(contact) or 0.0, contact.address) for contact in neighbourhood.contacts()]
        if self._peer_cache is not None and known:  # who is cut off keeps what it knew before
            self._peer_cache.save(shown_address(address) for _, address in sorted(known, reverse=True))

    def _remember(self, record: Record, now_ms: int) -> None:
        self._last_own[record.key] = record
        if len(self._last_own) > MAX_REMEMBERED:
            self._last_own = {key: own for key, own in self._last_own.items() if own.expires_ms > now_ms}

    def _own_records(self) -> list[Record]:
        return list(self._last_own.values())

    def _wall_ms(self) -> int:
        return int(self.clock.wall_s() * 1000)
