"""A node's signed statement of the experts it serves, and the keys under which the DHT holds it.

One announcement per node covers all its experts. Pure: bytes and values, no sockets.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from learning_at_home.errors import WireError
from learning_at_home.expert_uid import MAX_CELLS

ANNOUNCEMENT_LIFE_S = 60.0  # two refreshes may be lost; a dead host is gone from the DHT within a minute
ANNOUNCEMENT_REFRESH_S = 20.0
REFRESH_JITTER = 0.2
STALE_AFTER_S = 1.5 * ANNOUNCEMENT_REFRESH_S
_ENDPOINT = re.compile(r"tcp(?:\+plain)?://(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})")
MAX_CLAIMS = 64
MAX_SPANS = 128  # per claim; the DHT's bound on a record is tighter still for a node that scatters all its claims
MAX_CLAIMED_CELLS = 8_192  # of one node: a stranger must not make every reader walk millions of cells


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Cells of one layer that a node serves: flat indices as spans [first, end), claimed since a moment.

    Of two nodes that claim one cell the older claim serves (then the lower node id).
    """

    prefix: Annotated[str, msgspec.Meta(max_length=32)]
    spans: Annotated[tuple[tuple[int, int], ...], msgspec.Meta(max_length=MAX_SPANS)]
    claimed_ms: int

    def cells(self) -> Iterator[int]:
        for first, end in self.spans:
            yield from range(first, end)


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a node's DHT record; the record around it has the key, sequence, expiry and signature."""

    project: Annotated[str, msgspec.Meta(max_length=40)]
    name: Annotated[str, msgspec.Meta(max_length=32)]
    endpoints: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=80)], ...], msgspec.Meta(max_length=8)]
    state: Literal["online", "draining", "paused"]
    claims: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=MAX_CLAIMS)]
    issued_ms: int
    load_ms: float = 0.0
    agent: Annotated[str, msgspec.Meta(max_length=40)] = ""

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self, order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> Announcement:
        """Raises WireError on anything malformed."""
        try:
            announcement = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise WireError(f"not an announcement: {error}") from error
        if not all(map(is_endpoint, announcement.endpoints)):
            raise WireError("an announcement has an endpoint that is not tcp://number:port")
        _check_claims(announcement.claims)
        return announcement


def is_endpoint(text: str) -> bool:
    """Whether callers may connect to it though a stranger wrote it: `tcp://` or, for those who accept it, PLAIN_SCHEME;
    a numeric unicast address, a port.

    No other transport, no further ZeroMQ syntax, and no names: libzmq looks them up in the one thread that serves all
    connections of a process, so that a name server which never answers would stop them all.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        return False
    try:
        address = ipaddress.ip_address(match[1] or match[2])
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified or address.is_reserved)


def _check_claims(claims: tuple[Claim, ...]) -> None:
    """Raises WireError unless each cell is claimed once, by spans that cost little to walk."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for claim in claims:
        if claim.claimed_ms < 0:
            raise WireError(f"an announcement claims cells of {claim.prefix!r} since before 1970")
        spans.setdefault(claim.prefix, []).extend(claim.spans)
    num_cells = 0
    for prefix, of_layer in spans.items():
        end_before = 0
        for first, end in sorted(of_layer):
            if not end_before <= first < end <= MAX_CELLS:
                raise WireError(f"an announcement claims impossible cells of {prefix!r}, or some twice")
            end_before = end
            num_cells += end - first
    if num_cells > MAX_CLAIMED_CELLS:
        raise WireError(f"an announcement claims {num_cells:,} cells; {MAX_CLAIMED_CELLS:,} are allowed")


def spans_of(cells: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted, disjoint [first, end) spans of a set of cells."""
    spans: list[tuple[int, int]] = []
    for cell in sorted(set(cells)):
        if spans and spans[-1][1] == cell:
            spans[-1] = (spans[-1][0], cell + 1)
        else:
            spans.append((cell, cell + 1))
    return tuple(spans)


def dht_key(*parts: str) -> bytes:
    """20-byte DHT key of a name such as ("layer", "digits", "ffn0")."""
    return hashlib.sha256("/".join(parts).encode()).digest()[:20]


def layer_key(project: str, prefix: str) -> bytes:
    """Where the announcements of all nodes that serve a layer are found, one sub-record per node."""
    return dht_key("layer", project, prefix)


def project_key(project: str) -> bytes:
    """Where coordinators publish the project record, one sub-record per coordinator."""
    return dht_key("project", project)
