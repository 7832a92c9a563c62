"""A peer of the DHT: what the rest of Learning@home asks of it. Async; lives on one event loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from learning_at_home.clock import Clock, SystemClock
from learning_at_home.dht.records import Record
from learning_at_home.identity import Identity


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup brought: every publisher's newest valid record that is no tombstone, and whether anyone was asked."""

    records: tuple[Record, ...]
    num_answered: int  # peers that answered; 0 while we know of none


@dataclass(frozen=True, slots=True)
class DhtStatus:
    """For telemetry and the pages. Counters are totals since the node started."""

    num_peers: int
    num_records: int
    num_bytes: int
    refusals: dict[str, int]  # reason -> records refused, stored or found
    bad_datagrams: int
    timeouts: int
    unanswered_bootstrap: tuple[str, ...]  # "host:port" of those that have not answered yet


class DhtNode:
    """`async with DhtNode(identity, "0.0.0.0", 0, bootstrap=["host:port"]) as node:`

    Entering opens the socket and tries every bootstrap address once (about a second when none answers); those that did
    not answer are tried again in the background for as long as the node lives. `client_only`: asks, but holds nothing for
    others and is not put into their routing tables (a peer behind NAT; a trainer).
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
    ) -> None:
        self.identity = identity
        self.clock: Clock = clock or SystemClock()

    async def __aenter__(self) -> DhtNode:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The UDP port that it listens on."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """ "host:port" as bound; what other peers on this machine can use as a bootstrap address."""
        raise NotImplementedError

    @property
    def num_peers(self) -> int:
        """Contacts in the routing table: peers that answered us and have not failed to since."""
        raise NotImplementedError

    def status(self) -> DhtStatus:
        raise NotImplementedError

    async def bootstrap(self, addresses: Iterable[str], *, require: bool = False) -> int:
        """How many of these addresses answered; all are tried in parallel, and the silent ones again in the background.

        `require`: raises BootstrapFailed, with each address and what was wrong with it, when none did.
        """
        raise NotImplementedError

    async def store(self, key: bytes, value: bytes, life_s: float) -> int:
        """How many peers hold the value now (this node counts when it is one of them). Signed by this node's identity.

        Raises RecordRefused when the value or its life is out of bounds, or when all who were asked refused it;
        BootstrapFailed when a client-only node knows no peer. An empty value is a tombstone: use `withdraw`.
        The node stores it again by itself when the neighbourhood changes, until it expires: long lives need no timer.
        """
        raise NotImplementedError

    async def store_record(self, record: Record) -> int:
        """The same for a record that is already signed, by whomever."""
        raise NotImplementedError

    async def withdraw(self, key: bytes) -> int:
        """Replace what this node stored under the key by a tombstone that outlives it."""
        raise NotImplementedError

    async def get(self, key: bytes) -> list[Record]:
        """Every publisher's newest valid record under the key, tombstones left out, in the order of the publishers' keys."""
        return list((await self.find(key)).records)

    async def find(self, key: bytes) -> Found:
        """`get`, and how many peers answered: an empty answer of nobody is not the same as an empty key."""
        raise NotImplementedError
