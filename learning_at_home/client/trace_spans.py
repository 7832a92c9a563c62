"""What a trace holds, as values: rounds of calls, their sections and calls, and the stages that a call went through.

Pure. All times are seconds since the trace began, by this process's monotonic clock. How a node's own durations are
placed between them is told at `place_node_times`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from learning_at_home.wire.messages import Operation

Outcome = Literal["answered", "failed", "left behind", "open"]
StageName = Literal["waiting", "sending", "away", "to node", "queued", "computed", "from node", "reading"]

ROUNDING_S = 2e-6  # a node tells two durations in whole microseconds: so much may they say too much by rounding
MOST_US = 1e15  # thirty years: what is above only has to stay finite


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a call during which one thing happened to it."""

    name: StageName
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """A node's own durations, placed inside the time that its call was away."""

    queued_s: float
    computed_s: float
    queued_from_s: float
    clamped: bool  # the node reported more than the call took


def place_node_times(sent_s: float, received_s: float, queued_us: float, computed_us: float) -> NodeTimes:
    """Where the node's durations lie between sent and received.

    The node's clock is unknown here: what it says is only how long, not when. So the time that is left after both is
    taken for the network and halved, one half before the queue and one after the computing, as if the two ways took
    equally long. Durations that do not fit are cut to fit in equal proportion, and marked; so are negative ones.
    """
    away_s = max(0.0, received_s - sent_s)
    queued_s, computed_s = (min(max(0.0, us), MOST_US) / 1e6 for us in (queued_us, computed_us))  # NaN becomes 0
    reported_s = queued_s + computed_s
    clamped = not (queued_us >= 0 and computed_us >= 0) or reported_s > away_s + ROUNDING_S
    if reported_s > away_s:
        queued_s, computed_s = away_s * (queued_s / reported_s), away_s * (computed_s / reported_s)
    return NodeTimes(queued_s, computed_s, sent_s + max(0.0, away_s - queued_s - computed_s) / 2, clamped)


@dataclass(frozen=True, slots=True)
class SectionSpan:
    """Work of this process within a round: gate, choose, gather, wait, mix ..."""

    round: int
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class CallSpan:
    """One attempt to have one expert compute some rows. Times that it did not reach are None.

    Names of nodes and messages of errors come from strangers: what could steer a terminal has been replaced.
    """

    round: int
    uid: str
    operation: Operation
    node_id: str  # the node's public key, hex
    node: str  # its name
    rows: int
    attempt: int  # 1, and one more each time that the same work was sent again
    chosen_s: float  # it was decided to ask this expert, or to ask it again
    issued_s: float | None  # its tensors began to be made into a message
    sent_s: float | None  # the message was given to the socket
    received_s: float | None  # the answer was read from the socket
    end_s: float  # the answer was checked; or the call was given up; or the trace ended
    outcome: Outcome
    error_type: str | None
    error: str | None
    bytes_sent: int  # of tensors, as they were on the wire
    bytes_received: int
    node_times: NodeTimes | None  # None when the node told none

    @property
    def start_s(self) -> float:
        """When it was decided: `chosen_s`."""
        return self.chosen_s

    @property
    def total_s(self) -> float:
        """From that to the end."""
        return self.end_s - self.chosen_s

    @property
    def queued_s(self) -> float | None:
        """How long it waited at the node, as the node tells; None when it told nothing."""
        return None if self.node_times is None else self.node_times.queued_s

    @property
    def computed_s(self) -> float | None:
        """How long the node computed the batch that it was in; None when it told nothing."""
        return None if self.node_times is None else self.node_times.computed_s

    @property
    def network_s(self) -> float | None:
        """The time away that the node does not account for: both ways, and what either end needs to read and write."""
        if self.node_times is None or self.sent_s is None or self.received_s is None:
            return None
        return max(0.0, self.received_s - self.sent_s - self.node_times.queued_s - self.node_times.computed_s)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What happened one after the other, without gaps, from chosen to the end."""
        stages = [Stage("waiting", self.chosen_s, self.end_s if self.issued_s is None else self.issued_s)]
        if self.issued_s is not None:
            stages.append(Stage("sending", self.issued_s, self.end_s if self.sent_s is None else self.sent_s))
        if self.sent_s is not None:
            back_s = self.end_s if self.received_s is None else self.received_s
            times = self.node_times
            if times is None:
                stages.append(Stage("away", self.sent_s, back_s))
            else:
                computed_from_s = times.queued_from_s + times.queued_s
                computed_to_s = computed_from_s + times.computed_s
                stages.append(Stage("to node", self.sent_s, times.queued_from_s))
                stages.append(Stage("queued", times.queued_from_s, computed_from_s))
                stages.append(Stage("computed", computed_from_s, computed_to_s))
                stages.append(Stage("from node", computed_to_s, back_s))
        if self.received_s is not None:
            stages.append(Stage("reading", self.received_s, self.end_s))
        return tuple(stages)


@dataclass(frozen=True, slots=True)
class RoundSpan:
    """One forward or backward of a layer or of a single expert."""

    round: int  # counts from 1 in each trace
    name: str  # the layer's prefix, or the expert's uid
    operation: Operation
    rows: int
    thread: int  # which of the threads seen, counted from 1
    start_s: float
    end_s: float
    is_open: bool  # it was still under way when the trace ended
    error_type: str | None
    sections: tuple[SectionSpan, ...]
    calls: tuple[CallSpan, ...]


@dataclass(frozen=True, slots=True)
class TraceSpans:
    """Everything that a trace holds, in order of start."""

    began_wall_s: float  # seconds since 1970, UTC, as this process believes
    seconds: float
    dropped: int  # spans over the trace's limit
    rounds: tuple[RoundSpan, ...]
