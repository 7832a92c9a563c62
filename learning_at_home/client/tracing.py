"""Record what each call of a step went through: `with swarm.trace() as t:` collects, `t.text()` and others show it.

Threaded: rounds and calls are recorded by the threads that run them (autograd's too), each handle by one thread at a
time; only a trace's list of rounds is shared, under its lock. While no trace is open, `Tracing.round` reads one
attribute and hands out None, and nothing else is done. Nothing here holds a tensor.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from learning_at_home.client.trace_files import trace_as_chrome, trace_as_json
from learning_at_home.client.trace_spans import CallSpan, RoundSpan, SectionSpan, TraceSpans
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.waterfall import draw_waterfall
from learning_at_home.clock import Clock
from learning_at_home.errors import ConfigError, UsageError
from learning_at_home.wire.messages import Operation

MAX_SPANS = 10_000  # about 10 MB; a forward and backward of a layer with 1,024 experts to each row makes 2,060
_NOTHING: nullcontext[None] = nullcontext()


class Tracing:
    """A swarm's switch for traces. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.current: Trace | None = None  # the one that is open; to be read only

    def trace(self, max_spans: int = MAX_SPANS) -> Trace:
        """A trace that collects while its `with` block runs. Raises ConfigError when it could hold nothing."""
        if max_spans < 1:
            raise ConfigError(f"max_spans is {max_spans}; a trace needs room for one span at least")
        return Trace(self, self._clock, max_spans)

    def round(self, name: str, operation: Operation, rows: int) -> AbstractContextManager[TracedRound | None]:
        """`with tracing.round("ffn0", "forward", len(x)) as traced:` around a layer's or expert's forward or backward.

        None when no trace is open, or when the open one is full.
        """
        trace = self.current
        return _NOTHING if trace is None else trace.begin_round(name, operation, rows)

    def open(self, trace: Trace) -> None:
        """Raises UsageError when another trace is open."""
        with self._lock:
            if self.current is not None:
                raise UsageError("another trace of this swarm is open; it sees the calls of all threads: use that one")
            self.current = trace

    def close(self) -> None:
        self.current = None


def section(traced: TracedRound | None, name: str) -> AbstractContextManager[None]:
    """`with section(traced, "gate"):` around a piece of a round's own work; does nothing when traced is None."""
    return _NOTHING if traced is None else traced.section(name)


class Trace:
    """What the calls of a swarm went through while the `with` block ran, in all threads; for one use.

    Entering it a second time raises UsageError, and so does entering it while another one of this swarm is open.

    A round belongs to a trace when it begins inside of it. At `max_spans` (rounds, sections and calls together) the
    rest is only counted, in `dropped`. Inside the block it shows what is known so far; afterwards it stays as it is.
    """

    def __init__(self, tracing: Tracing, clock: Clock, max_spans: int) -> None:
        self._clock = clock
        self._tracing = tracing
        self._lock = threading.Lock()
        self._room = max_spans
        self._dropped = 0
        self._began_s: float | None = None
        self._began_wall_s = 0.0
        self._recorded: list[TracedRound] = []
        self._kept: TraceSpans | None = None

    def __enter__(self) -> Trace:
        if self._began_s is not None:
            raise UsageError("a trace is for one `with` block: make another one by swarm.trace()")
        began_s, began_wall_s = self._clock.monotonic_s(), self._clock.wall_s()  # before any thread's first round
        self._tracing.open(self)
        self._began_s, self._began_wall_s = began_s, began_wall_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracing.close()
        kept = self._snapshot()
        with self._lock:
            self._kept, self._recorded, self._room = kept, [], 0

    @property
    def rounds(self) -> tuple[RoundSpan, ...]:
        """Every forward and backward of a layer or single expert, with its sections and calls."""
        return self._snapshot().rounds

    @property
    def calls(self) -> tuple[CallSpan, ...]:
        """The calls of all rounds."""
        return tuple(call for round_ in self.rounds for call in round_.calls)

    @property
    def spans(self) -> tuple[RoundSpan | SectionSpan | CallSpan, ...]:
        """Rounds, sections and calls in order of start."""
        found: list[RoundSpan | SectionSpan | CallSpan] = []
        for round_ in self.rounds:
            found += [round_, *round_.sections, *round_.calls]
        return tuple(sorted(found, key=lambda span: span.start_s))

    @property
    def dropped(self) -> int:
        """How many spans did not find room."""
        return self._snapshot().dropped

    def text(self, width: int = 120, *, max_rounds: int = 8, max_calls: int = 32) -> str:
        """A waterfall for a terminal or a file, `width` columns wide (80 at least), in plain ASCII but for names.

        Shows the slowest `max_rounds` rounds, and of each the slowest `max_calls` calls, and tells what it leaves out.
        """
        return draw_waterfall(self._snapshot(), width, max_rounds, max_calls)

    def to_json(self, indent: int | None = None) -> str:
        """Everything, by the schema of docs/tracing.md."""
        return trace_as_json(self._snapshot(), indent)

    def chrome_trace(self) -> str:
        """JSON in Chrome's trace event format, which Perfetto and chrome://tracing show."""
        return trace_as_chrome(self._snapshot())

    def save(self, path: str | Path) -> None:
        """Write `chrome_trace()` to a file, whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(self.chrome_trace(), encoding="utf-8")
        unfinished.replace(path)

    def __repr__(self) -> str:
        held = self._snapshot()
        calls = sum(len(round_.calls) for round_ in held.rounds)
        return f"<Trace of {held.seconds * 1000:.2f} ms: {len(held.rounds)} rounds, {calls} calls>"

    def begin_round(self, name: str, operation: Operation, rows: int) -> AbstractContextManager[TracedRound | None]:
        """For Tracing."""
        with self._lock:
            if not self._has_room():
                return _NOTHING
            traced = TracedRound(self._clock, self._reserve, name, operation, rows)
            self._recorded.append(traced)
        return traced

    def _reserve(self) -> bool:
        with self._lock:
            return self._has_room()

    def _has_room(self) -> bool:
        if self._kept is not None:
            return False
        if not self._room:
            self._dropped += 1
            return False
        self._room -= 1
        return True

    def _snapshot(self) -> TraceSpans:
        with self._lock:
            if self._kept is not None:
                return self._kept
            recorded, dropped = list(self._recorded), self._dropped
        now = self._clock.monotonic_s()
        began_s = now if self._began_s is None else self._began_s
        threads: dict[int, int] = {}
        rounds = tuple(
            traced.as_span(number, threads.setdefault(traced.thread, len(threads) + 1), began_s, now)
            for number, traced in enumerate(recorded, start=1)
        )
        return TraceSpans(self._began_wall_s, now - began_s, dropped, rounds)
