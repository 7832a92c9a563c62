"""What nodes and trainers say to the coordinator over its websocket: JSON text frames.

The address is `/api/v1/projects/{id}/telemetry`.

    coordinator: Challenge      peer: Introduction (signed)      coordinator: Accepted or Refused
    then, for as long as the socket lives:     node: NodeTelemetry          trainer: TrainerTelemetry, Report
    coordinator, to a trainer that wants it:   Mirrored: first all that it knows, then what is new

Counters are totals since the process started (`started_s` tells a restart): a lost message loses nothing.
What a node says of itself is *reported*, never verified; the coordinator labels it so.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from learning_at_home.errors import WireError
from learning_at_home.expert_uid import MAX_CELLS

TELEMETRY_INTERVAL_S = 5.0  # also at once on a change of state
SILENCE_S = 8.0  # a node whose socket says nothing for so long is probed at once
MAX_TELEMETRY_BYTES = 1 << 20
MIRROR_VERSION = 1
MIRROR_HEARTBEAT_S = 2.0  # nothing new is told, too: a mirror that says nothing may be behind a dead connection
MAX_MIRRORED_RECORDS = 128  # of one message: 700 kB as base64 when each is as large as a record may be
MAX_NAME_CHARS = 80  # of a name, a run, a metric
MAX_METRICS = 16  # of one report
SIGNING_PURPOSE = "telemetry"

NodeState = Literal["joining", "online", "draining", "paused", "offline"]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
HexKey = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


def introduction_bytes(nonce: str, project: str, role: str, coordinator_public_key: str) -> bytes:
    """What an Introduction signs (purpose SIGNING_PURPOSE): bound to this coordinator, project, role and nonce."""
    return msgspec.msgpack.encode([nonce, project, role, coordinator_public_key])


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    nonce: str  # 32 random bytes, hex
    coordinator_public_key: HexKey
    wall_s: float  # time hint


class Hardware(msgspec.Struct, frozen=True):
    """Labels of the machine, as the node reports them."""

    device: Name = "cpu"  # "cpu", "cuda:0"
    device_name: Name = ""  # "NVIDIA GeForce RTX 4070"
    memory_bytes: Count = 0  # of the device
    cpus: Count = 0
    platform: Name = ""


class Introduction(msgspec.Struct, frozen=True, tag="introduction"):
    role: Literal["node", "trainer"]
    public_key: HexKey
    signature: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]
    name: Name
    agent: Name
    hardware: Hardware = Hardware()
    mirror: Count = 0  # the version of Mirrored that a trainer wants to be sent; 0: none


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    interval_s: float = TELEMETRY_INTERVAL_S


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    code: int
    message: str


class ExpertTelemetry(msgspec.Struct, frozen=True, array_like=True):
    """One hosted expert. Totals since the node started, except the latencies (last 60 s; None without calls)."""

    prefix: Name
    cell: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CELLS)]
    rows_forward: Count
    rows_backward: Count
    updates: Count
    calls: Count
    failures: Count
    p50_ms: Amount | None
    p95_ms: Amount | None
    update_age_s: Amount | None  # since its last optimizer step
    flop: Amount  # of answered work, counted from the architecture


class DeviceTelemetry(msgspec.Struct, frozen=True):
    """Gauges of the device; None where it cannot be read."""

    load_percent: Amount | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    temperature_c: float | None = None
    power_w: Amount | None = None


class NodeTelemetry(msgspec.Struct, frozen=True, tag="node"):
    started_s: float  # wall clock at the process's start
    state: NodeState
    experts: Annotated[tuple[ExpertTelemetry, ...], msgspec.Meta(max_length=8_192)]
    queue_rows: Count
    refused: Count  # requests refused or dropped: full queue, late, malformed
    p50_ms: Amount | None  # of all its calls, admission to answer, last 60 s
    p95_ms: Amount | None
    device: DeviceTelemetry = DeviceTelemetry()
    staleness_p50: Count | None = None  # updates that its experts made between a forward and its backward, lately
    staleness_max: Count | None = None
    notice: Annotated[str, msgspec.Meta(max_length=300)] = ""  # why it is not simply online, or what it yielded


class TrainerTelemetry(msgspec.Struct, frozen=True, tag="trainer"):
    started_s: float
    calls: Count
    failures: Count
    rows: Count
    p50_ms: Amount | None  # of its expert calls as seen from here, last 60 s
    p95_ms: Amount | None


class Report(msgspec.Struct, frozen=True, tag="report"):
    """What `swarm.report(step, loss=...)` sends. NaN and infinity are left out by the sender."""

    run: Name
    step: Count
    metrics: Annotated[dict[Name, float], msgspec.Meta(max_length=MAX_METRICS)]


class Knocking(msgspec.Struct, frozen=True):
    """The coordinator's answer to POST /api/v1/knock: it is bringing the token to the ports named."""

    address: str  # at which it knocks


class Mirrored(msgspec.Struct, frozen=True, tag="mirrored"):
    """DHT records: nodes' announcements and their ends, this coordinator's suspicions and their ends. Each is signed.

    Of all that was said before nothing is taken back but by a newer record, or by the end of its life.
    """

    sequence: Count  # from 0 on every connection; one that is missing means: connect again
    complete: bool  # all that the coordinator knows has been said by now; the first messages are parts of a snapshot
    age_s: Amount  # since the coordinator last had the DHT's word
    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_MIRRORED_RECORDS)] = ()


PeerMessage = Introduction | NodeTelemetry | TrainerTelemetry | Report
CoordinatorMessage = Challenge | Accepted | Refused | Mirrored

_peer_decoder: msgspec.json.Decoder[PeerMessage] = msgspec.json.Decoder(PeerMessage)
_coordinator_decoder: msgspec.json.Decoder[CoordinatorMessage] = msgspec.json.Decoder(CoordinatorMessage)
_MessageT = TypeVar("_MessageT")


def encode(message: PeerMessage | CoordinatorMessage) -> str:
    return msgspec.json.encode(message).decode()


def decode_peer(text: str | bytes) -> PeerMessage:
    """What a node or trainer sent. Raises WireError."""
    return _decode(_peer_decoder, text)


def decode_coordinator(text: str | bytes) -> CoordinatorMessage:
    """What the coordinator sent. Raises WireError."""
    return _decode(_coordinator_decoder, text)


def _decode(decoder: msgspec.json.Decoder[_MessageT], text: str | bytes) -> _MessageT:
    if len(text) > MAX_TELEMETRY_BYTES:
        raise WireError(f"a telemetry message of {len(text):,} bytes; {MAX_TELEMETRY_BYTES:,} are allowed")
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise WireError(f"not a telemetry message: {error}") from error
