"""Write a trace as JSON, by the schema of docs/tracing.md, and in Chrome's trace event format.

Pure. Source of the latter: the "Trace Event Format" document of the Chromium project; of its events only X (complete)
and M (metadata) are used, which Perfetto and chrome://tracing both read.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from learning_at_home.client.trace_spans import CallSpan, RoundSpan, SectionSpan, TraceSpans

SCHEMA = "learning-at-home/trace/1"  # the number changes when a field goes or changes its meaning, not when one comes
TRAINER_PID = 1  # nodes follow
SHOWN_ID_CHARS = 8  # of a node's id; names alone are not unique

Json = dict[str, object]
_Timed = TypeVar("_Timed", RoundSpan, CallSpan)


def trace_as_json(trace: TraceSpans, indent: int | None) -> str:
    """The whole trace; times are microseconds since it began."""
    whole: Json = {
        "schema": SCHEMA,
        "began_unix_s": round(trace.began_wall_s, 6),
        "duration_us": _us(trace.seconds),
        "dropped_spans": trace.dropped,
        "rounds": [_round(round_) for round_ in trace.rounds],
    }
    return json.dumps(whole, indent=indent)


def trace_as_chrome(trace: TraceSpans) -> str:
    """One process per node and one for the trainer; a thread per expert; each call holds its stages."""
    events = [*_trainer_events(trace.rounds)]
    by_node: dict[str, list[CallSpan]] = {}
    for round_ in trace.rounds:
        for call in round_.calls:
            by_node.setdefault(call.node_id, []).append(call)
    for pid, (node_id, calls) in enumerate(by_node.items(), start=TRAINER_PID + 1):
        events += _node_events(pid, node_id, calls)
    other: Json = {"schema": SCHEMA, "began_unix_s": round(trace.began_wall_s, 6), "dropped_spans": trace.dropped}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other})


def _round(round_: RoundSpan) -> Json:
    return {
        "round": round_.round,
        "name": round_.name,
        "operation": round_.operation,
        "rows": round_.rows,
        "thread": round_.thread,
        "start_us": _us(round_.start_s),
        "end_us": _us(round_.end_s),
        "open": round_.is_open,
        "error_type": round_.error_type,
        "sections": [_section(section) for section in round_.sections],
        "calls": [_call(call) for call in round_.calls],
    }


def _section(section: SectionSpan) -> Json:
    return {"name": section.name, "start_us": _us(section.start_s), "end_us": _us(section.end_s)}


def _call(call: CallSpan) -> Json:
    return {
        "uid": call.uid,
        "node_id": call.node_id,
        "node": call.node,
        "rows": call.rows,
        "attempt": call.attempt,
        "outcome": call.outcome,
        "error_type": call.error_type,
        "error": call.error,
        "bytes_sent": call.bytes_sent,
        "bytes_received": call.bytes_received,
        "chosen_us": _us(call.chosen_s),
        "issued_us": _us(call.issued_s),
        "sent_us": _us(call.sent_s),
        "received_us": _us(call.received_s),
        "end_us": _us(call.end_s),
        "queued_us": _us(call.queued_s),
        "computed_us": _us(call.computed_s),
        "network_us": _us(call.network_s),
        "node_times_clamped": None if call.node_times is None else call.node_times.clamped,
        "stages": [
            {"name": stage.name, "start_us": _us(stage.start_s), "end_us": _us(stage.end_s)} for stage in call.stages
        ],
    }


def _trainer_events(rounds: Sequence[RoundSpan]) -> Iterable[Json]:
    yield from _process(TRAINER_PID, "this trainer")
    tid = 0
    for thread in sorted({round_.thread for round_ in rounds}):
        lanes = _lanes([round_ for round_ in rounds if round_.thread == thread])
        for number, lane in enumerate(lanes, start=1):
            tid += 1
            yield _thread(TRAINER_PID, tid, _lane_name(f"thread {thread}", number))
            for round_ in lane:
                facts: Json = {"round": round_.round, "rows": round_.rows, "error_type": round_.error_type}
                title = f"{round_.operation} of {round_.name}"
                yield _complete(TRAINER_PID, tid, "round", title, round_.start_s, round_.end_s, facts)
                for section in round_.sections:
                    where: Json = {"round": section.round}
                    yield _complete(TRAINER_PID, tid, "section", section.name, section.start_s, section.end_s, where)


def _node_events(pid: int, node_id: str, calls: Sequence[CallSpan]) -> Iterable[Json]:
    yield from _process(pid, f"node {calls[0].node} ({node_id[:SHOWN_ID_CHARS]})")
    by_uid: dict[str, list[CallSpan]] = {}
    for call in calls:
        by_uid.setdefault(call.uid, []).append(call)
    tid = 0
    for uid in sorted(by_uid):
        for number, lane in enumerate(_lanes(by_uid[uid]), start=1):
            tid += 1
            yield _thread(pid, tid, _lane_name(uid, number))
            for call in lane:
                yield _complete(pid, tid, "call", f"{call.operation} of {uid}", call.start_s, call.end_s, _facts(call))
                for stage in call.stages:
                    yield _complete(pid, tid, "stage", stage.name, stage.start_s, stage.end_s, {"round": call.round})


def _facts(call: CallSpan) -> Json:
    return {
        "round": call.round,
        "rows": call.rows,
        "attempt": call.attempt,
        "outcome": call.outcome,
        "error_type": call.error_type,
        "error": call.error,
        "bytes_sent": call.bytes_sent,
        "bytes_received": call.bytes_received,
        "node_times_clamped": None if call.node_times is None else call.node_times.clamped,
    }


def _lanes(spans: Sequence[_Timed]) -> list[list[_Timed]]:
    """The spans in as few rows as hold them without overlap: in one thread of the format they may only be nested."""
    lanes: list[list[_Timed]] = []
    free_at: list[tuple[int, int]] = []  # when each lane is free, and its place
    for span in sorted(spans, key=lambda span: span.start_s):
        if free_at and free_at[0][0] <= _ns(span.start_s):
            _, place = heapq.heappop(free_at)
        else:
            place = len(lanes)
            lanes.append([])
        lanes[place].append(span)
        heapq.heappush(free_at, (_ns(span.end_s), place))
    return lanes


def _lane_name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}, at once ({number})"


def _process(pid: int, name: str) -> Iterable[Json]:
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}


def _thread(pid: int, tid: int, name: str) -> Json:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _complete(pid: int, tid: int, category: str, name: str, start_s: float, end_s: float, facts: Json) -> Json:
    start_ns = _ns(start_s)  # whole nanoseconds first: both ends of neighbours and of parent and child then agree
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "cat": category,
        "name": name,
        "ts": start_ns / 1000,
        "dur": (_ns(end_s) - start_ns) / 1000,
        "args": facts,
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 3)
