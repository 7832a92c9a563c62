"""What a trace keeps of a step, and what it costs the others when there is none."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from learning_at_home.client.trace_spans import CallSpan, place_node_times
from learning_at_home.client.traced_round import TracedCall, TracedRound
from learning_at_home.client.tracing import Trace, Tracing, section
from learning_at_home.errors import CallTimeout, ConfigError, NodeOverloaded, UsageError
from learning_at_home.peer_address import PeerAddress
from learning_at_home.testing import ManualClock

HERON = PeerAddress(b"\x01" * 32, ("tcp://192.0.2.1:7001",), "brisk heron")
OTTER = PeerAddress(b"\x02" * 32, ("tcp://192.0.2.2:7001",), "calm otter")
MS = 1e-3

WATERFALL = """\
Trace of 16.00 ms: 2 rounds, 6 calls to 2 nodes (1 failed, 1 left behind, 1 sent again)
In ms   = this process   . waits to be sent   > sent   - on its way   q queued   # computed   < received   x failed

#1 forward of ffn0, 64 rows: 10.00 ms, from 0.00 ms on, thread 1
                 |0                      10.00 ms|  rows    total   queued computed  network  node
  gate           |==                             |           0.50
  choose         | ===                           |           0.50
  gather         |   ==                          |           0.50
  wait           |    ========================== |           8.00
  mix            |                             ==|           0.50
  ffn0.0.1       |   >>-q###-<<                  |    16     3.00     0.20     1.00     1.00  brisk heron
  ffn0.0.2       |   >>-qqqq#######-<            |    20     5.00     1.50     2.00     0.70  brisk heron
  ffn0.1.3       |   >>-----x                    |    28     2.50        -        -        -  NodeOverloaded: calm otter
  ffn0.1.3 try 2 |          ..........--q#####-- |    28     6.00     0.50     1.50     1.00  calm otter
  slowest: ffn0.1.3 try 2, 6.00 ms, 3.00 of it waiting to be sent, on calm otter

#2 backward of ffn0, 64 rows: 6.00 ms, from 10.00 ms on, thread 1
           |0                                6.00 ms|  rows    total   queued computed  network  node
  ffn0.0.1 |.......---####################----      |    16     5.00     0.00     3.00     1.00  brisk heron
  ffn0.1.3 |.......---------------------------------|    28     6.00        -        -        -  left behind: calm otter
  slowest: ffn0.0.1, 5.00 ms, 3.00 of it computed, on brisk heron
"""


class Step:
    """A made-up step, told to a trace at given moments (milliseconds)."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.began_s = self.clock.monotonic_s()
        self.tracing = Tracing(self.clock)

    def at(self, ms: float) -> float:
        """The moment, to which the clock advances."""
        moment = self.began_s + ms * MS
        self.clock.advance(max(0.0, moment - self.clock.monotonic_s()))
        return moment


def traced(handle: TracedCall | None) -> TracedCall:
    assert handle is not None
    return handle


def begun(round_: TracedRound | None) -> TracedRound:
    assert round_ is not None
    return round_


def one_call(step: Step, holder: PeerAddress = HERON, queued_us: float = 500, computed_us: float = 1_500) -> Trace:
    """A trace of a single call: chosen at 1, issued at 2, sent at 3, received at 7, judged at 8 ms."""
    with step.tracing.trace() as trace, step.tracing.round("ffn0.0.1", "forward", 16) as round_:
        call = traced(begun(round_).call("ffn0.0.1", holder, 16, at=step.at(1)))
        call.issued(step.at(2))
        call.sent(8_192, step.at(3))
        call.received(4_096, queued_us, computed_us, step.at(7))
        call.ended(at=step.at(8))
    return trace


def forward_and_backward() -> Trace:
    """Two nodes; one is full at first, and one is left behind in backward."""
    step = Step()
    with step.tracing.trace() as trace:
        with step.tracing.round("ffn0", "forward", 64) as round_:
            forward = begun(round_)
            with forward.section("gate"):
                step.at(0.5)
            with forward.section("choose"):
                step.at(1)
            first, second = (traced(forward.call(f"ffn0.0.{i}", HERON, 12 + 4 * i, at=step.at(1))) for i in (1, 2))
            third = traced(forward.call("ffn0.1.3", OTTER, 28))
            with forward.section("gather"):
                for call in (first, second, third):
                    call.issued(step.at(1))
                for call in (first, second, third):
                    call.sent(16_384, step.at(1.5))
            with forward.section("wait"):
                third.received(0, at=step.at(3.5))
                third.ended(NodeOverloaded("full", peer="calm otter"), step.at(3.5))
                again = traced(third.again())
                first.received(16_384, 200, 1_000, step.at(3.7))
                first.ended(at=step.at(4))
                second.received(16_384, 1_500, 2_000, step.at(5.7))
                second.ended(at=step.at(6))
                again.issued(step.at(6.5))
                again.sent(28_672, step.at(6.5))
                again.received(28_672, 500, 1_500, step.at(9.5))
                again.ended(at=step.at(9.5))
            with forward.section("mix"):
                step.at(10)
        with step.tracing.round("ffn0", "backward", 64) as round_:
            backward = begun(round_)
            first = traced(backward.call("ffn0.0.1", HERON, 16))
            other = traced(backward.call("ffn0.1.3", OTTER, 28))
            for call in (first, other):
                call.issued(step.at(11))
                call.sent(32_768, step.at(11))
            first.received(16_384, 0, 3_000, step.at(15))
            first.ended(at=step.at(15))
            other.left_behind(step.at(16))
    return trace


def test_the_waterfall_of_a_step_shows_every_stage_of_every_call() -> None:
    text = forward_and_backward().text(width=120)

    assert text.startswith(WATERFALL)


def test_the_waterfall_ends_with_the_totals_per_node_and_the_slowest_expert() -> None:
    text = forward_and_backward().text(width=120)

    assert text.endswith(
        """
Per node      calls failed    rows    queued  computed   network       sent   received  node
                  3      0      52      1.70      6.00      2.70   64.0 KiB   48.0 KiB  brisk heron
                  3      1      84      0.50      1.50      1.00   76.0 KiB   28.0 KiB  calm otter

Slowest of all: ffn0.1.3 try 2, 6.00 ms, 3.00 of it waiting to be sent, on calm otter"""
    )


@pytest.mark.parametrize("width", [80, 119, 120, 200])
def test_no_line_of_the_waterfall_is_wider_than_asked(width: int) -> None:
    assert max(map(len, forward_and_backward().text(width).splitlines())) <= width


def test_the_bars_of_a_round_stand_in_one_column() -> None:
    lines = forward_and_backward().text().splitlines()

    assert {line.index("|") for line in lines if "|" in line[:20]} == {17, 11}  # one per round


def test_only_the_slowest_calls_of_a_big_round_are_drawn_and_the_others_counted() -> None:
    step = Step()
    with step.tracing.trace() as trace, step.tracing.round("ffn0", "forward", 100) as round_:
        for i in range(100):
            traced(begun(round_).call(f"ffn0.{i}", HERON, 1, at=step.at(0))).ended(at=step.at(i))

    text = trace.text(max_calls=3)

    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ffn0")] == [
        "ffn0.97",
        "ffn0.98",
        "ffn0.99",
    ]
    assert "... and 97 quicker calls" in text


def test_only_the_slowest_rounds_of_a_long_trace_are_drawn_and_the_others_counted() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        for ms in (1, 5, 2, 4):
            with step.tracing.round("ffn0", "forward", 1):
                step.clock.advance(ms * MS)

    text = trace.text(max_rounds=2)

    assert [line.split()[0] for line in text.splitlines() if line.startswith("#")] == ["#2", "#4"]
    assert "... and 2 quicker rounds" in text


def test_the_totals_name_only_the_nodes_whose_calls_took_longest() -> None:
    step = Step()
    with step.tracing.trace() as trace, step.tracing.round("ffn0", "forward", 100) as round_:
        for i in range(40):
            peer = PeerAddress(bytes([i]) * 32, (), f"node{i}")
            traced(begun(round_).call(f"ffn0.{i}", peer, 1, at=step.at(0))).ended(at=step.at(i))

    totals = trace.text().partition("Per node")[2].splitlines()

    assert [line.split()[-1] for line in totals[1:33]] == [f"node{i}" for i in range(8, 40)]
    assert totals[33:] == ["... and 8 nodes whose calls took less time"]


def test_a_trace_without_any_call_still_has_a_text() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        pass

    assert trace.text().startswith("Trace of 0.00 ms: 0 rounds, 0 calls to 0 nodes\n")


def test_a_round_that_took_no_measurable_time_still_has_bars() -> None:
    step = Step()
    with step.tracing.trace() as trace, step.tracing.round("ffn0", "forward", 1) as round_:
        traced(begun(round_).call("ffn0.1", HERON, 1)).ended()

    assert "  ffn0.1 |." in trace.text()


def test_the_stages_of_a_call_follow_each_other_without_gaps() -> None:
    (call,) = one_call(Step()).calls

    assert [stage.name for stage in call.stages] == [
        "waiting",
        "sending",
        "to node",
        "queued",
        "computed",
        "from node",
        "reading",
    ]
    assert [stage.seconds / MS for stage in call.stages] == pytest.approx([1, 1, 1, 0.5, 1.5, 1, 1])
    assert (call.stages[0].start_s, call.stages[-1].end_s) == (call.chosen_s, call.end_s)
    for before, after in zip(call.stages, call.stages[1:], strict=False):
        assert before.end_s == after.start_s


def test_the_network_has_what_the_node_does_not_account_for_half_on_each_way() -> None:
    times = place_node_times(10.0, 20.0, queued_us=1_000_000, computed_us=3_000_000)

    assert times.queued_from_s == 13.0
    assert (times.queued_s, times.computed_s, times.clamped) == (1.0, 3.0, False)


@pytest.mark.parametrize(
    "queued_us, computed_us",
    [
        (2**53, 0),
        (0, 2**53),
        (2**53, 2**53),
        (3_000, 3_000),
        (-1, 5),
        (math.inf, 1),
        (math.inf, math.inf),
        (math.nan, 1),
        (1e308, 1e308),
    ],
)
def test_times_of_a_node_that_cannot_be_are_cut_to_fit_and_marked(queued_us: float, computed_us: float) -> None:
    times = place_node_times(1.0, 1.004, queued_us, computed_us)

    assert times.clamped
    assert times.queued_s >= 0
    assert times.computed_s >= 0
    assert times.queued_from_s >= 1.0
    assert times.queued_from_s + times.queued_s + times.computed_s <= 1.004 + 1e-9


def test_a_node_that_rounds_up_is_not_marked() -> None:
    assert not place_node_times(1.0, 1.001, queued_us=1, computed_us=1_000).clamped


def test_clamped_times_carry_a_mark_in_the_text_and_in_json() -> None:
    trace = one_call(Step(), computed_us=1e9)

    assert "*" in trace.text()
    assert "cut to fit" in trace.text()
    assert json.loads(trace.to_json())["rounds"][0]["calls"][0]["node_times_clamped"] is True


def test_moments_that_were_told_out_of_order_never_make_a_stage_run_backwards() -> None:
    step = Step()
    with step.tracing.trace() as trace, step.tracing.round("ffn0", "forward", 1) as round_:
        call = traced(begun(round_).call("ffn0.1", HERON, 1, at=step.at(5)))
        call.issued(step.began_s)
        call.sent(1, step.at(4))
        call.received(1, 10, 10, step.at(3))
        call.ended(at=step.at(2))

    (span,) = trace.calls
    assert all(stage.seconds >= 0 for stage in span.stages)
    assert span.total_s == 0


def test_each_attempt_is_a_call_of_its_own() -> None:
    attempts = [call for call in forward_and_backward().calls if call.uid == "ffn0.1.3" and call.round == 1]

    assert [(call.attempt, call.outcome, call.error_type) for call in attempts] == [
        (1, "failed", "NodeOverloaded"),
        (2, "answered", None),
    ]
    assert attempts[0].end_s == attempts[1].chosen_s


def test_a_call_that_nobody_ended_is_open_until_its_round_ends() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        with step.tracing.round("ffn0", "forward", 1) as round_:
            traced(begun(round_).call("ffn0.1", HERON, 1)).issued(step.at(1))
            step.at(3)
        step.at(9)

    (call,) = trace.calls
    assert (call.outcome, call.error_type) == ("open", None)
    assert call.end_s == pytest.approx(3 * MS)


def test_a_round_that_raises_is_kept_with_the_type_of_its_error() -> None:
    step = Step()
    with step.tracing.trace() as trace, pytest.raises(CallTimeout), step.tracing.round("ffn0", "forward", 1):
        raise CallTimeout("no answer")

    assert trace.rounds[0].error_type == "CallTimeout"
    assert "ended by CallTimeout" in trace.text()


def test_a_trace_shows_what_is_known_while_it_is_open_and_stays_as_it_is_afterwards() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        round_ = begun(step.tracing.round("ffn0", "forward", 1).__enter__())
        call = traced(round_.call("ffn0.1", HERON, 1))
        step.at(2)
        assert trace.rounds[0].is_open
        assert "so far" in trace.text()
    call.ended(CallTimeout("late"), step.at(5))
    assert round_.call("ffn0.2", HERON, 1) is None

    assert [call.outcome for call in trace.calls] == ["open"]
    assert trace.rounds[0].end_s == pytest.approx(2 * MS)
    assert trace.dropped == 0


def test_without_a_trace_nothing_is_recorded_and_nothing_made() -> None:
    tracing = Step().tracing

    with tracing.round("ffn0", "forward", 1) as round_, section(round_, "gate"):
        assert round_ is None
    assert tracing.round("a", "forward", 1) is tracing.round("b", "backward", 2)
    assert section(None, "gate") is section(None, "wait")


def test_a_round_belongs_to_the_trace_that_is_open_when_it_begins() -> None:
    step = Step()
    before = step.tracing.round("before", "forward", 1)
    with before, step.tracing.trace() as trace, step.tracing.round("inside", "forward", 1):
        pass
    with step.tracing.round("after", "forward", 1):
        pass

    assert [round_.name for round_ in trace.rounds] == ["inside"]


def test_a_second_trace_at_the_same_time_is_refused_and_the_first_goes_on() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        with pytest.raises(UsageError, match="another trace"), step.tracing.trace():
            pass
        with step.tracing.round("ffn0", "forward", 1):
            pass
    with step.tracing.trace() as later:
        pass

    assert (len(trace.rounds), len(later.rounds)) == (1, 0)


def test_a_trace_is_for_one_block() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        pass

    with pytest.raises(UsageError, match="one `with` block"), trace:
        pass
    with step.tracing.trace():
        pass


def test_a_trace_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_spans is 0"):
        Step().tracing.trace(max_spans=0)


def test_a_full_trace_only_counts_what_comes() -> None:
    step = Step()
    with step.tracing.trace(max_spans=3) as trace:
        with step.tracing.round("ffn0", "forward", 1) as round_:
            with section(round_, "gate"):
                pass
            calls = [begun(round_).call("ffn0.1", HERON, 1) for _ in range(3)]
            with section(round_, "mix"):
                pass
        with step.tracing.round("ffn0", "backward", 1) as none:
            pass

    assert [call is not None for call in calls] == [True, False, False]
    assert none is None
    assert len(trace.spans) == 3
    assert trace.dropped == 4
    assert "4 spans left out for want of room" in trace.text()


def test_rounds_of_many_threads_come_together() -> None:
    tracing = Step().tracing
    barrier = threading.Barrier(8)

    def train() -> None:
        barrier.wait(timeout=10)
        for _ in range(20):
            with tracing.round("ffn0", "forward", 1) as round_:
                traced(begun(round_).call("ffn0.1", HERON, 1)).ended()

    with tracing.trace() as trace:
        threads = [threading.Thread(target=train) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)

    assert len(trace.rounds) == 160
    assert [round_.round for round_ in trace.rounds] == list(range(1, 161))
    assert {round_.thread for round_ in trace.rounds} == set(range(1, 9))
    assert all(len(round_.calls) == 1 for round_ in trace.rounds)


def test_names_and_errors_of_strangers_cannot_steer_a_terminal_or_break_a_line() -> None:
    step = Step()
    evil = PeerAddress(b"\x03" * 32, (), "\x1b[2Jevil\n#9 forward of all\u202e" + "x" * 500)
    with step.tracing.trace() as trace, step.tracing.round("ffn0\x1b[0m", "forward", 1) as round_:
        call = traced(begun(round_).call("ffn0.1\r\n", evil, 1))
        call.ended(NodeOverloaded("full\x07\n" * 500, peer="\x1b[2J"))

    lines = trace.text().splitlines()
    shown = trace.text() + trace.to_json() + trace.chrome_trace()
    assert len([line for line in lines if line.startswith("#")]) == 1
    assert all(line.isprintable() and len(line) <= 120 for line in lines)
    assert not any(char in shown for char in ("\x1b", "\\u001b", "\\u202e", "\\u0007", "\\r", "\\n"))
    assert len(trace.calls[0].error or "") <= 200


def test_two_nodes_of_one_name_are_told_apart_by_their_ids() -> None:
    step = Step()
    with step.tracing.trace() as trace, step.tracing.round("ffn0", "forward", 1) as round_:
        for key in (b"\x0a" * 32, b"\x0b" * 32):
            traced(begun(round_).call("ffn0.1", PeerAddress(key, (), "heron"), 1)).ended()

    assert "heron (0a0a0a0a)" in trace.text()
    assert "heron (0b0b0b0b)" in trace.text()


def test_names_of_wide_characters_are_cut_to_the_columns_that_they_take() -> None:
    trace = one_call(Step(), PeerAddress(b"\x03" * 32, (), "東" * 100))

    (line,) = [line for line in trace.text().splitlines() if line.startswith("  ffn0")]
    assert line.endswith("  " + "東" * 12)


def test_nothing_of_a_trace_keeps_an_error_and_with_it_the_tensors_of_its_frames() -> None:
    step = Step()
    with step.tracing.trace(), step.tracing.round("ffn0", "forward", 1) as round_:
        call = traced(begun(round_).call("ffn0.1", HERON, 1))
        call.ended(CallTimeout("no answer"))

    held = [getattr(call, name) for name in TracedCall.__slots__]
    assert not any(isinstance(part, BaseException) for value in held for part in (value, *_parts(value)))


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else ()


def test_spans_hold_everything_in_order_of_start() -> None:
    trace = forward_and_backward()

    assert len(trace.spans) == 2 + 5 + 6
    assert [span.start_s for span in trace.spans] == sorted(span.start_s for span in trace.spans)
    assert {span.round for span in trace.spans} == {1, 2}
    assert [span for span in trace.spans if isinstance(span, CallSpan)] == sorted(
        trace.calls, key=lambda call: call.start_s
    )


def test_json_has_the_documented_fields() -> None:
    whole = json.loads(one_call(Step()).to_json())

    assert whole["schema"] == "learning-at-home/trace/1"
    (round_,) = whole["rounds"]
    (call,) = round_.pop("calls")
    assert {key: whole[key] for key in ("began_unix_s", "duration_us", "dropped_spans")} == {
        "began_unix_s": 1_800_000_000.0,
        "duration_us": 8_000.0,
        "dropped_spans": 0,
    }
    assert round_ == {
        "round": 1,
        "name": "ffn0.0.1",
        "operation": "forward",
        "rows": 16,
        "thread": 1,
        "start_us": 0.0,
        "end_us": 8_000.0,
        "open": False,
        "error_type": None,
        "sections": [],
    }
    assert [stage["name"] for stage in call.pop("stages")] == [stage.name for stage in one_call(Step()).calls[0].stages]
    assert call == {
        "uid": "ffn0.0.1",
        "node_id": "01" * 32,
        "node": "brisk heron",
        "rows": 16,
        "attempt": 1,
        "outcome": "answered",
        "error_type": None,
        "error": None,
        "bytes_sent": 8_192,
        "bytes_received": 4_096,
        "chosen_us": 1_000.0,
        "issued_us": 2_000.0,
        "sent_us": 3_000.0,
        "received_us": 7_000.0,
        "end_us": 8_000.0,
        "queued_us": 500.0,
        "computed_us": 1_500.0,
        "network_us": 2_000.0,
        "node_times_clamped": False,
    }


def test_every_field_of_the_json_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tracing.md").read_text("utf-8")

    assert sorted(key for key in _keys(json.loads(forward_and_backward().to_json())) if f"`{key}`" not in page) == []


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for part in value.values() for key in _keys(part)}
    return {key for part in value for key in _keys(part)} if isinstance(value, list) else set()


def chrome_events(trace: Trace) -> list[dict[str, object]]:
    events: list[dict[str, object]] = json.loads(trace.chrome_trace())["traceEvents"]
    return events


def test_the_chrome_trace_has_a_process_per_node_and_a_thread_per_expert() -> None:
    named = {
        (event["pid"], event["tid"], event["name"]): event["args"]
        for event in chrome_events(forward_and_backward())
        if event["ph"] == "M"
    }

    processes = {pid: args["name"] for (pid, _, kind), args in named.items() if kind == "process_name"}  # type: ignore[index]
    threads = {(pid, tid): args["name"] for (pid, tid, kind), args in named.items() if kind == "thread_name"}  # type: ignore[index]
    assert processes == {1: "this trainer", 2: "node brisk heron (01010101)", 3: "node calm otter (02020202)"}
    assert threads == {(1, 1): "thread 1", (2, 1): "ffn0.0.1", (2, 2): "ffn0.0.2", (3, 1): "ffn0.1.3"}


def test_the_chrome_trace_has_microseconds() -> None:
    events = [event for event in chrome_events(one_call(Step())) if event.get("cat") in ("call", "stage")]

    assert [(event["name"], event["ts"], event["dur"]) for event in events] == [
        ("forward of ffn0.0.1", 1_000.0, 7_000.0),
        ("waiting", 1_000.0, 1_000.0),
        ("sending", 2_000.0, 1_000.0),
        ("to node", 3_000.0, 1_000.0),
        ("queued", 4_000.0, 500.0),
        ("computed", 4_500.0, 1_500.0),
        ("from node", 6_000.0, 1_000.0),
        ("reading", 7_000.0, 1_000.0),
    ]


def test_events_of_one_chrome_thread_are_nested_and_never_overlap_otherwise() -> None:
    step = Step()
    with step.tracing.trace() as trace:
        rounds = [begun(step.tracing.round("ffn0", "forward", 1).__enter__()) for _ in range(3)]
        calls = [traced(round_.call("ffn0.1", HERON, 1)) for round_ in rounds]
        for i, call in enumerate(calls):
            call.issued(step.at(1 / 3 + i))
            call.sent(1, step.at(2 / 3 + i))
        for i, (round_, call) in enumerate(zip(rounds, calls, strict=True)):
            call.received(1, 333, 77, step.at(10 / 3 + i))
            call.ended(at=step.at(11 / 3 + i))
            round_.__exit__(None, None, None)

    threads: dict[tuple[object, object], list[tuple[int, int]]] = {}
    for event in chrome_events(trace):
        if event["ph"] == "X":
            start_ns, dur_ns = round(float(str(event["ts"])) * 1000), round(float(str(event["dur"])) * 1000)
            threads.setdefault((event["pid"], event["tid"]), []).append((start_ns, start_ns + dur_ns))
    for stretches in threads.values():
        for i, (start, end) in enumerate(stretches):
            for other_start, other_end in stretches[i + 1 :]:
                apart = other_start >= end or other_end <= start
                nested = (start <= other_start and other_end <= end) or (other_start <= start and end <= other_end)
                assert apart or nested
    assert len(threads) == 6  # three at once, on either side


def test_a_saved_trace_is_the_chrome_trace_and_replaces_the_file_whole(tmp_path: Path) -> None:
    trace = one_call(Step())
    (tmp_path / "step.json").write_text("old")

    trace.save(tmp_path / "step.json")

    assert (tmp_path / "step.json").read_text("utf-8") == trace.chrome_trace()
    assert [path.name for path in tmp_path.iterdir()] == ["step.json"]
