"""A node's signed statement of the experts it serves, and the names under which the DHT holds it.

One announcement per node covers all its experts. It is signed for the node's own key, and stored besides in slots of
prefix keys: that of `ffn0` has a slot per first index, that of `ffn0.3` one per second index, and so on to the last.
Pure: bytes and values, no sockets.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from learning_at_home.dht.records import key_of
from learning_at_home.errors import WireError
from learning_at_home.expert_uid import MAX_CELLS, Grid

ANNOUNCEMENT_LIFE_S = 60.0  # two refreshes may be lost; a dead host is gone from the DHT within a minute
ANNOUNCEMENT_REFRESH_S = 20.0
REFRESH_JITTER = 0.2
STALE_AFTER_S = 1.5 * ANNOUNCEMENT_REFRESH_S
_ENDPOINT = re.compile(r"tcp(?:\+plain)?://(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([1-9][0-9]{0,4})")
MAX_CLAIMS = 64
MAX_SPANS = 1_024  # per claim: 1,024 scattered cells take 2 kB of the 4 that a record holds
MAX_CLAIMED_CELLS = 8_192  # of one node: a stranger must not make every reader walk millions of cells


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Cells of one layer that a node serves: flat indices as spans [first, end), claimed since a moment.

    Of two nodes that claim one cell the older claim serves (then the lower node id).
    """

    prefix: str
    spans: tuple[tuple[int, int], ...]  # in order
    claimed_ms: int

    def cells(self) -> Iterator[int]:
        for first, end in self.spans:
            yield from range(first, end)


class _Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What an announcement says besides its claims."""

    project: Annotated[str, msgspec.Meta(max_length=40)]
    name: Annotated[str, msgspec.Meta(max_length=32)]
    endpoints: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=80)], ...], msgspec.Meta(max_length=8)]
    state: Literal["online", "draining", "paused"]
    issued_ms: int
    load_ms: float = 0.0
    agent: Annotated[str, msgspec.Meta(max_length=40)] = ""


class _PackedClaim(msgspec.Struct, frozen=True, array_like=True):
    """A claim as it travels: of each span how far it begins after the last one's end, and its length."""

    prefix: Annotated[str, msgspec.Meta(max_length=32)]
    runs: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_CELLS)], ...], msgspec.Meta(max_length=2 * MAX_SPANS)
    ]
    claimed_ms: int


class _Packed(_Statement, frozen=True, kw_only=True):
    claims: Annotated[tuple[_PackedClaim, ...], msgspec.Meta(max_length=MAX_CLAIMS)]


class Announcement(_Statement, frozen=True, kw_only=True):
    """The value of a node's DHT record; the record around it has the key, sequence, expiry and signature."""

    claims: tuple[Claim, ...]

    def to_bytes(self) -> bytes:
        packed = tuple(_PackedClaim(claim.prefix, _runs(claim.spans), claim.claimed_ms) for claim in self.claims)
        return msgspec.msgpack.encode(_Packed(**_statement(self), claims=packed), order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> Announcement:
        """Raises WireError on anything malformed."""
        try:
            packed = msgspec.msgpack.decode(data, type=_Packed)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise WireError(f"not an announcement: {error}") from error
        if not all(map(is_endpoint, packed.endpoints)):
            raise WireError("an announcement has an endpoint that is not tcp://number:port")
        num_cells = sum(map(_num_cells, packed.claims))
        if num_cells > MAX_CLAIMED_CELLS:
            raise WireError(f"an announcement claims {num_cells:,} cells; {MAX_CLAIMED_CELLS:,} are allowed")
        claims = tuple(Claim(claim.prefix, _spans(claim.runs), claim.claimed_ms) for claim in packed.claims)
        if len({claim.prefix for claim in claims}) < len(claims):
            _check_disjoint(claims)
        return cls(**_statement(packed), claims=claims)


def _statement(said: _Statement) -> dict[str, Any]:
    return {name: getattr(said, name) for name in _Statement.__struct_fields__}


def _runs(spans: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    runs: list[int] = []
    end_before = 0
    for first, end in spans:
        runs += (first - end_before, end - first)
        end_before = end
    return tuple(runs)


def _num_cells(claim: _PackedClaim) -> int:
    """Those of one claim, whose spans are in order as they are packed. Raises WireError unless they may be claimed."""
    lengths = claim.runs[1::2]
    if len(claim.runs) % 2 or 0 in lengths:
        raise WireError(f"an announcement with a span of {claim.prefix!r} that has no length")
    if claim.claimed_ms < 0:
        raise WireError(f"an announcement claims cells of {claim.prefix!r} since before 1970")
    if sum(claim.runs) > MAX_CELLS:
        raise WireError(f"an announcement claims cells of {claim.prefix!r} that no grid has")
    return sum(lengths)


def _spans(runs: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    ends = tuple(itertools.accumulate(runs))  # of gaps and spans in turn
    return tuple(zip(ends[::2], ends[1::2], strict=True))


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


def _check_disjoint(claims: Iterable[Claim]) -> None:
    """Raises WireError unless each cell is claimed once."""
    for prefix, spans in spans_by_prefix(claims).items():
        if any(end > first for (_, end), (first, _) in itertools.pairwise(spans)):
            raise WireError(f"an announcement claims some cells of {prefix!r} twice")


def spans_by_prefix(claims: Iterable[Claim]) -> dict[str, Sequence[tuple[int, int]]]:
    """All that are claimed of each layer, in order."""
    spans: dict[str, Sequence[tuple[int, int]]] = {}
    for claim in claims:
        others = spans.get(claim.prefix)
        spans[claim.prefix] = claim.spans if others is None else sorted((*others, *claim.spans))
    return spans


def spans_of(cells: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Sorted, disjoint [first, end) spans of a set of cells."""
    spans: list[tuple[int, int]] = []
    for cell in sorted(set(cells)):
        if spans and spans[-1][1] == cell:
            spans[-1] = (spans[-1][0], cell + 1)
        else:
            spans.append((cell, cell + 1))
    return tuple(spans)


def node_name(project: str, public_key: bytes) -> str:
    """Of the key that a node signs its announcement for; only the node's own record has a place there."""
    return f"node/{project}/{public_key.hex()}"


def node_key(project: str, public_key: bytes) -> bytes:
    return key_of(node_name(project, public_key))


def prefix_name(project: str, prefix: str, grid: Grid, indices: tuple[int, ...]) -> str:
    """Of the key whose slots are the indices that may follow these, in a grid of this shape."""
    return f"slots/{project}/{prefix}/{'x'.join(map(str, grid.shape))}/{'.'.join(map(str, indices))}"


def project_key(project: str) -> bytes:
    """Where coordinators publish the project record, one sub-record per coordinator."""
    return key_of(f"project/{project}")
