"""One node's counters as the message that its coordinator takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from learning_at_home.coordinator_messages import DeviceTelemetry, ExpertTelemetry, NodeState, NodeTelemetry
from learning_at_home.project import ProjectRecord
from learning_at_home.staleness import figures_of
from node_agent.runtime.host import Host
from node_agent.runtime.statistics import ExpertSnapshot

MAX_NOTICE_CHARS = 300


def node_telemetry(
    host: Host, project: ProjectRecord, *, started_s: float, state: NodeState, device: DeviceTelemetry, now: float
) -> NodeTelemetry:
    """What this node says of itself now. Experts that it yielded are told in the notice, not as hosted."""
    p50_ms, p95_ms = host.statistics.percentiles_ms(now)
    yielded = host.experts.yielded
    staleness = figures_of(host.statistics.staleness(now))
    return NodeTelemetry(
        started_s=started_s,
        state=state,
        experts=tuple(
            _expert_telemetry(snapshot, host, project)
            for snapshot in host.statistics.snapshot(now)
            if snapshot.uid not in yielded
        ),
        queue_rows=host.device_thread.queued_rows,
        refused=host.refused,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        device=device,
        staleness_p50=None if staleness is None else staleness.median,
        staleness_max=None if staleness is None else staleness.largest,
        notice=_notice(yielded),
    )


def _expert_telemetry(snapshot: ExpertSnapshot, host: Host, project: ProjectRecord) -> ExpertTelemetry:
    uid = host.experts.by_uid[snapshot.uid].uid
    return ExpertTelemetry(
        prefix=uid.prefix,
        cell=project.layer(uid.prefix).cells.cell(uid),
        rows_forward=snapshot.rows_forward,
        rows_backward=snapshot.rows_backward,
        updates=snapshot.updates,
        calls=snapshot.calls,
        failures=snapshot.failures,
        p50_ms=snapshot.p50_ms,
        p95_ms=snapshot.p95_ms,
        update_age_s=snapshot.update_age_s,
        flop=snapshot.flop,
    )


def _notice(yielded: Mapping[str, str]) -> str:
    if not yielded:
        return ""
    uid, reason = next(iter(yielded.items()))
    others = f" (and {len(yielded) - 1} more)" if len(yielded) > 1 else ""
    return f"yielded {uid}: {reason}{others}"[:MAX_NOTICE_CHARS]
