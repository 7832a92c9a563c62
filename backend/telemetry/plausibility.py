"""What a peer may say of itself: figures that can be true, and words that are text. Pure.

Types and signs are checked by coordinator_messages already; here are the bounds that keep one liar from filling a
column, a chart or a log. A message that breaks them is refused whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from learning_at_home.coordinator_messages import (
    DeviceTelemetry,
    Hardware,
    Introduction,
    NodeTelemetry,
    PeerMessage,
    Report,
    TrainerTelemetry,
)
from learning_at_home.errors import WireError
from learning_at_home.text import printable

MAX_COUNT = 10**15  # a million rows per second for thirty years
MAX_FLOP = 1e27  # an exaflop per second for thirty years
MAX_MS = 1e8  # a call takes an hour at most (deadline_s)
MAX_AGE_S = 1e10
MAX_METRIC = 1e30
MAX_WATTS = 1e6
MAX_CLOCK_S = 1e11
MAX_NOTICE_CHARS = 300


def checked(message: PeerMessage) -> PeerMessage:
    """The message with its words made printable. Raises WireError that names what cannot be true."""
    if isinstance(message, NodeTelemetry):
        _check_node(message)
        return msgspec.structs.replace(message, notice=printable(message.notice, MAX_NOTICE_CHARS))
    if isinstance(message, TrainerTelemetry):
        _within("counters", [message.calls, message.failures, message.rows], MAX_COUNT)
        _within("latencies", [message.p50_ms, message.p95_ms], MAX_MS)
        _within("started_s", [message.started_s], MAX_CLOCK_S)
        return message
    if isinstance(message, Report):
        _within("metrics", [abs(value) for value in message.metrics.values()], MAX_METRIC)
        metrics = {printable(metric): value for metric, value in message.metrics.items()}
        return msgspec.structs.replace(message, run=printable(message.run) or "run", metrics=metrics)
    return introduced(message)


def introduced(message: Introduction) -> Introduction:
    """The introduction with its words made printable."""
    hardware = message.hardware
    _within("memory_bytes", [hardware.memory_bytes], MAX_COUNT)
    return msgspec.structs.replace(
        message,
        name=printable(message.name),
        agent=printable(message.agent),
        hardware=Hardware(
            device=printable(hardware.device),
            device_name=printable(hardware.device_name),
            memory_bytes=hardware.memory_bytes,
            cpus=hardware.cpus,
            platform=printable(hardware.platform),
        ),
    )


def _check_node(message: NodeTelemetry) -> None:
    _within("started_s", [message.started_s], MAX_CLOCK_S)
    _within("latencies", [message.p50_ms, message.p95_ms], MAX_MS)
    _within("queue", [message.queue_rows, message.refused], MAX_COUNT)
    _within("staleness", [message.staleness_p50, message.staleness_max], MAX_COUNT)
    _check_device(message.device)
    seen = set()
    for each in message.experts:  # thousands of them: one comparison each, for signs and finiteness are checked already
        seen.add((each.prefix, each.cell))
        if (
            max(each.rows_forward, each.rows_backward, each.updates, each.calls, each.failures) > MAX_COUNT
            or each.flop > MAX_FLOP
            or max(each.p50_ms or 0, each.p95_ms or 0) > MAX_MS
            or (each.update_age_s or 0) > MAX_AGE_S
        ):
            raise WireError(f"a telemetry message is not believable: {printable(each.prefix, 32)} cell {each.cell}")
    if len(seen) != len(message.experts):
        raise WireError("a telemetry message names an expert twice")


def _check_device(device: DeviceTelemetry) -> None:
    _within("load_percent", [device.load_percent], 1e4)
    _within("memory", [device.memory_used_bytes, device.memory_total_bytes], MAX_COUNT)
    _within("power_w", [device.power_w], MAX_WATTS)
    if device.temperature_c is not None and not -274 <= device.temperature_c <= 10_000:
        raise WireError(f"a telemetry message is not believable: temperature_c = {device.temperature_c}")


def _within(what: str, values: Iterable[float | None], limit: float) -> None:
    for value in values:
        if value is not None and not (math.isfinite(value) and 0 <= value <= limit):
            raise WireError(f"a telemetry message is not believable: {what} = {value}")
