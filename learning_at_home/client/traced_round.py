"""The handles by which a round and its calls are recorded while they run.

Each handle is used by one thread at a time, its round's; another thread may ask at any moment for what is known so far.
A handle keeps numbers and text: no tensor, and no error, since an error's traceback holds the tensors of its frames.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from learning_at_home.client.trace_spans import (
    CallSpan,
    NodeTimes,
    Outcome,
    RoundSpan,
    SectionSpan,
    place_node_times,
)
from learning_at_home.clock import Clock
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.peer_address import PeerAddress
from learning_at_home.text import printable
from learning_at_home.wire.messages import Operation

MAX_ERROR_CHARS = 200


class TracedRound:
    """A round while it runs: its own sections, and the calls that it makes."""

    def __init__(self, clock: Clock, reserve: Callable[[], bool], name: str, operation: Operation, rows: int) -> None:
        """`reserve`: whether the trace has room for one more span."""
        self.thread = threading.get_ident()
        self.clock = clock
        self._reserve = reserve
        self._name = printable(name)
        self._operation = operation
        self._rows = rows
        self._sections: list[_Section] = []
        self._calls: list[TracedCall] = []
        self._started_s = clock.monotonic_s()
        self._end: tuple[float, str | None] | None = None  # when, and the type of the error that ended it

    def __enter__(self) -> TracedRound:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = (self.clock.monotonic_s(), None if kind is None else kind.__name__)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """`with traced.section("gate"):` around a piece of this process's own work."""
        if not self._reserve():
            yield
            return
        entry = _Section(printable(name), self.clock.monotonic_s())
        self._sections.append(entry)
        try:
            yield
        finally:
            entry.ended_s = self.clock.monotonic_s()

    def call(
        self, uid: str, holder: PeerAddress, rows: int, *, attempt: int = 1, at: float | None = None
    ) -> TracedCall | None:
        """A call that is about to be made: this expert was chosen now (or `at`). None when the trace is full."""
        if not self._reserve():
            return None
        made = TracedCall(self, uid, holder, rows, attempt, self.clock.monotonic_s() if at is None else at)
        self._calls.append(made)
        return made

    def as_span(self, number: int, thread: int, began_s: float, now: float) -> RoundSpan:
        """What is known by `now`, in seconds since `began_s`."""
        ended_s, error_type = (now, None) if self._end is None else self._end
        return RoundSpan(
            round=number,
            name=self._name,
            operation=self._operation,
            rows=self._rows,
            thread=thread,
            start_s=self._started_s - began_s,
            end_s=ended_s - began_s,
            is_open=self._end is None,
            error_type=error_type,
            sections=tuple(entry.as_span(number, began_s, now) for entry in list(self._sections)),
            calls=tuple(call.as_span(number, self._operation, began_s, ended_s) for call in list(self._calls)),
        )


class TracedCall:
    """A call while it runs. Every method takes the moment (monotonic seconds), or reads the clock."""

    __slots__ = (
        "_attempt",
        "_bytes_received",
        "_bytes_sent",
        "_chosen_s",
        "_end",
        "_holder",
        "_issued_s",
        "_node_us",
        "_received_s",
        "_round",
        "_rows",
        "_sent_s",
        "_uid",
    )

    def __init__(self, traced: TracedRound, uid: str, holder: PeerAddress, rows: int, attempt: int, at: float) -> None:
        self._round = traced
        self._uid = uid
        self._holder = holder
        self._rows = rows
        self._attempt = attempt
        self._chosen_s = at
        self._issued_s: float | None = None
        self._sent_s: float | None = None
        self._received_s: float | None = None
        self._bytes_sent = 0
        self._bytes_received = 0
        self._node_us: tuple[float, float] | None = None  # queued and computed
        self._end: tuple[float, Outcome, str | None, str | None] | None = None  # ... the error's type and message

    def issued(self, at: float | None = None) -> None:
        """Its tensors are about to be made into frames."""
        self._issued_s = self._moment(at)

    def sent(self, num_bytes: int, at: float | None = None) -> None:
        """The transport has given its message to the socket; `num_bytes` of tensors, as on the wire."""
        self._bytes_sent = num_bytes
        self._sent_s = self._moment(at)

    def received(
        self, num_bytes: int, queued_us: float | None = None, computed_us: float | None = None, at: float | None = None
    ) -> None:
        """Its answer was read from the socket; the node's own durations, when the answer has them."""
        self._bytes_received = num_bytes
        if queued_us is not None and computed_us is not None:
            self._node_us = (queued_us, computed_us)
        self._received_s = self._moment(at)

    def ended(self, error: LearningAtHomeError | None = None, at: float | None = None) -> None:
        """The answer was checked and can be used; or it cannot, or there is none, for this reason."""
        if error is None:
            self._end = (self._moment(at), "answered", None, None)
        else:
            message = printable(str(error), MAX_ERROR_CHARS)
            self._end = (self._moment(at), "failed", type(error).__name__, message)

    def left_behind(self, at: float | None = None) -> None:
        """Nobody waits for it any more: the others were enough."""
        self._end = (self._moment(at), "left behind", None, None)

    def again(self, at: float | None = None) -> TracedCall | None:
        """The same work, to be sent once more: the next attempt, decided now. None when the trace is full."""
        return self._round.call(self._uid, self._holder, self._rows, attempt=self._attempt + 1, at=self._moment(at))

    def as_span(self, number: int, operation: Operation, began_s: float, round_ended_s: float) -> CallSpan:
        """What is known by now, in seconds since `began_s`. Times never go back, whatever was told."""
        ended_s, outcome, error_type, error = self._end or (round_ended_s, "open", None, None)
        latest_s = chosen_s = self._chosen_s - began_s
        reached: list[float | None] = []
        for moment in (self._issued_s, self._sent_s, self._received_s):
            if moment is not None:
                latest_s = max(latest_s, moment - began_s)
            reached.append(None if moment is None else latest_s)
        issued_s, sent_s, received_s = reached
        times: NodeTimes | None = None
        if self._node_us is not None and sent_s is not None and received_s is not None:
            times = place_node_times(sent_s, received_s, *self._node_us)
        return CallSpan(
            round=number,
            uid=printable(self._uid),
            operation=operation,
            node_id=self._holder.public_key.hex(),
            node=printable(self._holder.name),
            rows=self._rows,
            attempt=self._attempt,
            chosen_s=chosen_s,
            issued_s=issued_s,
            sent_s=sent_s,
            received_s=received_s,
            end_s=max(latest_s, ended_s - began_s),
            outcome=outcome,
            error_type=error_type,
            error=error,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            node_times=times,
        )

    def _moment(self, at: float | None) -> float:
        return self._round.clock.monotonic_s() if at is None else at


class _Section:
    __slots__ = ("ended_s", "name", "started_s")

    def __init__(self, name: str, started_s: float) -> None:
        self.name = name
        self.started_s = started_s
        self.ended_s: float | None = None

    def as_span(self, number: int, began_s: float, now: float) -> SectionSpan:
        ended_s = now if self.ended_s is None else self.ended_s
        return SectionSpan(number, self.name, self.started_s - began_s, ended_s - began_s)
