"""What is known of a node and its experts, and the word for it: the definitions of section 2 of the design, as
functions.

Three kinds of evidence, in the order in which they are believed: our own probe, the signed announcement, what the node
says over its socket. Pure: `now` is passed in; knows nothing of sockets, pages or the database.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dashboard.view import ExpertHealth, NodeHealth
from learning_at_home.coordinator_messages import NodeState
from learning_at_home.directory.announcement import STALE_AFTER_S

FAILURES_THAT_DECIDE = 2
DEGRADED_P95_RATIO = 4.0
DEGRADED_FAILED_SHARE = 0.05
DEGRADED_AFTER_S = 30.0
MIN_CALLS_TO_JUDGE = 20  # below this one failed call is already over 5 %, and the p95 is the latency of one slow call
MIN_EXPERTS_FOR_MEDIAN = 3  # a median of two is one of the two


@dataclass(slots=True)
class NodeEvidence:
    """All that speaks for or against one node. Times are UTC seconds of this coordinator."""

    announced_s: float | None = None  # when its latest announcement was issued
    expires_s: float | None = None
    announced_state: Literal["online", "draining", "paused"] = "online"
    socket_open: bool = False
    heard_s: float | None = None  # last telemetry
    said: NodeState | None = None
    withdrawn: bool = False  # it said goodbye
    answered_s: float | None = None  # last probe that was answered
    failures: int = 0  # probes unanswered since
    failed_s: float = 0.0  # last of these


def node_health(evidence: NodeEvidence, now: float) -> NodeHealth:
    """The node's state, but for `degraded`, which its experts decide."""
    if evidence.withdrawn or evidence.failures >= FAILURES_THAT_DECIDE:
        return "offline"
    if evidence.expires_s is None:
        return "joining" if evidence.socket_open else "offline"
    if now >= evidence.expires_s:
        # Nobody can find it, but while it talks to us it is not gone.
        return "stale" if evidence.socket_open and evidence.answered_s is not None else "offline"
    if evidence.answered_s is None:
        return "joining"
    if evidence.failures or (evidence.announced_s is not None and now - evidence.announced_s > STALE_AFTER_S):
        return "stale"
    if evidence.said in ("draining", "paused"):
        return evidence.said
    return evidence.announced_state


def expert_health(
    node: NodeHealth, *, hosted_before: bool, record_expired: bool, degraded: bool, has_checkpoint: bool = False
) -> ExpertHealth:
    """The health of a cell whose host is in the state `node`.

    A node that drains or pauses holds its experts but answers no new call: stale. A cell that nobody can reach is
    vacant when it never was hosted by a node that answered us: a claim alone is nothing.
    """
    if node in ("offline", "joining") or record_expired:
        if not hosted_before:
            return "vacant"
        return "lost" if has_checkpoint else "orphaned"
    if node in ("stale", "draining", "paused"):
        return "stale"
    return "degraded" if degraded else "serving"


@dataclass(slots=True)
class DegradedWatch:
    """Since when an expert is slow or failing; only what lasts counts."""

    since_s: float | None = None

    def update(self, bad: bool, now: float) -> bool:
        """Whether it was bad at every look for DEGRADED_AFTER_S."""
        if not bad:
            self.since_s = None
            return False
        if self.since_s is None:
            self.since_s = now
        return now - self.since_s >= DEGRADED_AFTER_S


def median_p95_ms(values: Iterable[float | None]) -> float | None:
    """The layer's median, None while too few experts have a latency for one to stand out."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) >= MIN_EXPERTS_FOR_MEDIAN else None


def is_slow_or_failing(p95_ms: float | None, median_ms: float | None, calls: int, failures: int) -> bool:
    """Over 4 times the layer's median, or over 5 % of its calls failing; of an expert at rest nobody can say."""
    if calls < MIN_CALLS_TO_JUDGE:
        return False
    slow = p95_ms is not None and median_ms is not None and p95_ms > DEGRADED_P95_RATIO * median_ms
    return slow or failures > DEGRADED_FAILED_SHARE * calls
