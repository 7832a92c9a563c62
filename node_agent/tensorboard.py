"""The node's health for TensorBoard: the same figures as its telemetry, as scalars over time.

Needs the extra `tensorboard`. Writing is disk work: not for the event loop.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from learning_at_home.coordinator_messages import NodeTelemetry

WRITE_INTERVAL_S = 10.0


class MissingExtra(Exception):
    """A flag needs a package that is not installed; the message has the command that brings it."""


def require_tensorboard() -> None:
    """Raises MissingExtra. Cheap: it imports nothing."""
    if find_spec("tensorboard") is None:
        raise MissingExtra("--tensorboard needs a package more: pip install 'learning-at-home[node,tensorboard]'")


class HealthWriter:
    """Writes to one folder, from `write` to `close`."""

    def __init__(self, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, and only this flag needs it

        self._writer = SummaryWriter(str(folder / name))

    def write(self, telemetry: NodeTelemetry, now_s: float) -> None:
        """One point of each figure at the wall-clock time `now_s`."""
        experts = telemetry.experts
        step = round(now_s - telemetry.started_s)
        figures: dict[str, float | None] = {
            "rows/forward": float(sum(expert.rows_forward for expert in experts)),
            "rows/backward": float(sum(expert.rows_backward for expert in experts)),
            "rows/queued": float(telemetry.queue_rows),
            "calls/answered": float(sum(expert.calls - expert.failures for expert in experts)),
            "calls/failed": float(sum(expert.failures for expert in experts)),
            "calls/refused": float(telemetry.refused),
            "latency_ms/p50": telemetry.p50_ms,
            "latency_ms/p95": telemetry.p95_ms,
            "staleness_updates/p50": telemetry.staleness_p50,
            "staleness_updates/max": telemetry.staleness_max,
            "experts/hosted": float(len(experts)),
            "experts/updates": float(sum(expert.updates for expert in experts)),
            "device/load_percent": telemetry.device.load_percent,
            "device/memory_used_bytes": telemetry.device.memory_used_bytes,
            "device/temperature_c": telemetry.device.temperature_c,
            "device/power_w": telemetry.device.power_w,
        }
        for tag, value in figures.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step, walltime=now_s)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
