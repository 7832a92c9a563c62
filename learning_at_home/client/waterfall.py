"""Draw a trace as text: for each round a time axis, with a bar for each section and call, and totals per node.

Pure. Plain ASCII, so that every terminal and file shows the columns aligned, whatever its encoding and colours. Only
names of nodes may hold other characters; they stand last in their lines, where they can move nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

from learning_at_home.client.trace_spans import CallSpan, RoundSpan, SectionSpan, StageName, TraceSpans

MIN_WIDTH = 80
WIDE_COLUMNS = 120  # narrower, the node's times are left out: the bar shows them, too
MIN_BAR_COLUMNS = 10
MAX_LABEL_COLUMNS = 24
MAX_NODE_COLUMNS = 24
MAX_NODES = 32  # in the totals; a screen or two
MAX_TAIL_COLUMNS = 40  # a node's name with what went wrong in front of it

_Timed = TypeVar("_Timed", RoundSpan, CallSpan)

_MARKS: dict[StageName, str] = {
    "waiting": ".",
    "sending": ">",
    "away": "-",
    "to node": "-",
    "queued": "q",
    "computed": "#",
    "from node": "-",
    "reading": "<",
}
_OWN_WORK = "="
_FAILED = "x"
_LEGEND = (
    "In ms   = this process   . waits to be sent   > sent   - on its way",
    "q queued   # computed   < received   x failed",
)
_SAID: dict[StageName, str] = {
    "waiting": "waiting to be sent",
    "sending": "being sent",
    "away": "away, and the node told no times",
    "to node": "on its way",
    "queued": "queued at the node",
    "computed": "computed",
    "from node": "on its way",
    "reading": "being read and checked",
}


def draw_waterfall(trace: TraceSpans, width: int, max_rounds: int, max_calls: int) -> str:
    """The text, lines of at most `width` columns (80 at least); without a newline at the end."""
    width = max(MIN_WIDTH, width)
    calls = [call for round_ in trace.rounds for call in round_.calls]
    nodes = node_labels(calls)
    shown = _slowest(trace.rounds, max_rounds)
    lines = [*_headlines(trace, calls, width), *(["   ".join(_LEGEND)] if width >= WIDE_COLUMNS else _LEGEND)]
    for round_ in shown:
        lines += ["", *_round_lines(round_, nodes, width, max_calls)]
    if len(shown) < len(trace.rounds):
        lines += ["", f"... and {len(trace.rounds) - len(shown)} quicker rounds"]
    if calls:
        lines += ["", *_node_lines(calls, nodes, width)]
        if len(trace.rounds) > 1:
            lines += ["", f"Slowest of all: {_slowest_call(calls, nodes)}"]
    if any(call.node_times is not None and call.node_times.clamped for call in calls):
        lines += ["", "* the node reports times that do not fit the call: cut to fit"]
    return "\n".join(fit(line, width) for line in lines)


def node_labels(calls: Iterable[CallSpan]) -> dict[str, str]:
    """What to call each node, by its id: its name, with the start of its id where several have the same name."""
    names = {call.node_id: call.node for call in calls}
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        node_id: name if name and counts[name] == 1 else f"{name} ({node_id[:8]})".strip()
        for node_id, name in names.items()
    }


def draw_bar(stages: Sequence[tuple[str, float, float]], start_s: float, end_s: float, columns: int) -> str:
    """One row of an axis from start to end: in each column the mark of the stage that takes most of it.

    `stages`: marks with their start and end, in order. Something is always drawn, also of a stretch without length.
    """
    step_s = (end_s - start_s) / columns
    first_s, last_s = stages[0][1], stages[-1][2]
    if step_s <= 0:
        return stages[-1][0].ljust(columns)
    first = _column(first_s, start_s, step_s, columns)
    last = max(first, _column(last_s, start_s, step_s, columns, is_end=True))
    cells = []
    for column in range(first, last + 1):
        from_s, to_s = start_s + column * step_s, start_s + (column + 1) * step_s
        shares = [min(to_s, end) - max(from_s, begin) for _, begin, end in stages]
        cells.append(stages[shares.index(max(shares))][0])
    return (" " * first + "".join(cells)).ljust(columns)


def _column(moment_s: float, start_s: float, step_s: float, columns: int, *, is_end: bool = False) -> int:
    """The column that a moment lies in; an end on the border between two belongs to the first."""
    position = (moment_s - start_s) / step_s
    column = int(position + 1e-9)
    if is_end and position - column < 1e-9:
        column -= 1
    return min(max(column, 0), columns - 1)


def _headlines(trace: TraceSpans, calls: Sequence[CallSpan], width: int) -> list[str]:
    counts = [
        _count(sum(call.outcome == "failed" for call in calls), "failed"),
        _count(sum(call.outcome == "left behind" for call in calls), "left behind"),
        _count(sum(call.outcome == "open" for call in calls), "still open"),
        _count(sum(call.attempt > 1 for call in calls), "sent again"),
        _count(trace.dropped, "spans left out for want of room"),
    ]
    noted = ", ".join(count for count in counts if count)
    num_nodes = len({call.node_id for call in calls})
    amounts = [(len(trace.rounds), "round"), (len(calls), "call"), (num_nodes, "node")]
    rounds, made, asked = (f"{number:,} {what}{'' if number == 1 else 's'}" for number, what in amounts)
    text = f"Trace of {_ms(trace.seconds)} ms: {rounds}, {made} to {asked}"
    one_line = f"{text} ({noted})" if noted else text
    return [one_line] if len(one_line) <= width else [text, f"({noted})"]


def _round_lines(round_: RoundSpan, nodes: dict[str, str], width: int, max_calls: int) -> list[str]:
    shown = _by_node(_slowest(round_.calls, max_calls))
    spans: list[SectionSpan | CallSpan] = [*round_.sections, *shown]
    label_columns = max((len(_label(span)) for span in spans), default=0)
    tail_columns = max((_columns(_tail(call, nodes)) for call in shown), default=0)
    titles = _number_titles(width)
    taken = 2 + label_columns + 3 + len(titles) + 2 + min(tail_columns, MAX_TAIL_COLUMNS)
    bar_columns = max(MIN_BAR_COLUMNS, width - taken)
    begin_s, end_s = round_.start_s, round_.end_s
    axis = "0" + f"{_ms(end_s - begin_s)} ms".rjust(bar_columns - 1)
    lines = [_round_title(round_), f"  {'':{label_columns}} |{axis}|{titles}  node"]
    for section in round_.sections:
        bar = draw_bar([(_OWN_WORK, section.start_s, section.end_s)], begin_s, end_s, bar_columns)
        number = f"{'':6}{_ms(section.end_s - section.start_s):>9}"
        lines.append(f"  {_label(section):{label_columns}} |{bar}|{number}")
    for call in shown:
        bar = _call_bar(call, round_, bar_columns)
        lines.append(f"  {_label(call):{label_columns}} |{bar}|{_numbers(call, width)}  {_tail(call, nodes)}")
    if len(shown) < len(round_.calls):
        lines.append(f"  ... and {len(round_.calls) - len(shown)} quicker calls")
    if round_.calls:
        lines.append(f"  slowest: {_slowest_call(round_.calls, nodes)}")
    return lines


def _round_title(round_: RoundSpan) -> str:
    seconds = _ms(round_.end_s - round_.start_s)
    ended = " so far" if round_.is_open else f", ended by {round_.error_type}" if round_.error_type else ""
    begins = f"from {_ms(round_.start_s)} ms on, thread {round_.thread}"
    return f"#{round_.round} {round_.operation} of {round_.name}, {round_.rows} rows: {seconds} ms{ended}, {begins}"


def _number_titles(width: int) -> str:
    titles = f"{'rows':>6}{'total':>9}"
    return titles + f"{'queued':>9}{'computed':>9}{'network':>9}" if width >= WIDE_COLUMNS else titles


def _numbers(call: CallSpan, width: int) -> str:
    text = f"{call.rows:>6}{_ms(call.total_s):>9}"
    if width < WIDE_COLUMNS:
        return text
    mark = "*" if call.node_times is not None and call.node_times.clamped else ""
    computed = _ms(call.computed_s) + mark
    return text + f"{_ms(call.queued_s):>9}{computed:>9}{_ms(call.network_s):>9}"


def _tail(call: CallSpan, nodes: dict[str, str]) -> str:
    """The node's name, and what went wrong in front of it: a name must not be able to hide it."""
    name = fit(nodes[call.node_id], MAX_NODE_COLUMNS)
    if call.outcome == "answered":
        return name
    return f"{call.error_type if call.outcome == 'failed' else call.outcome}: {name}"


def _node_lines(calls: Sequence[CallSpan], nodes: dict[str, str], width: int) -> list[str]:
    """The totals of each node; attempts that failed count with their bytes, and with no times."""
    wide = width >= WIDE_COLUMNS
    titles = f"{'queued':>10}{'computed':>10}{'network':>10}" if wide else ""
    lines = [f"{'Per node':12}{'calls':>7}{'failed':>7}{'rows':>8}{titles}{'sent':>11}{'received':>11}  node"]
    by_node: dict[str, list[CallSpan]] = {}
    for call in calls:
        by_node.setdefault(call.node_id, []).append(call)
    busiest = sorted(by_node, key=lambda node_id: -sum(call.total_s for call in by_node[node_id]))[:MAX_NODES]
    for node_id in [node_id for node_id in by_node if node_id in busiest]:
        of_node = by_node[node_id]
        failed = sum(call.outcome == "failed" for call in of_node)
        counts = f"{'':12}{len(of_node):>7}{failed:>7}{sum(call.rows for call in of_node):>8}"
        if wide:
            times = [(call.queued_s or 0.0, call.computed_s or 0.0, call.network_s or 0.0) for call in of_node]
            counts += "".join(f"{_ms(sum(column)):>10}" for column in zip(*times, strict=True))
        sent, received = (sum(call.bytes_sent for call in of_node), sum(call.bytes_received for call in of_node))
        lines.append(f"{counts}{_bytes(sent):>11}{_bytes(received):>11}  {nodes[node_id]}")
    if len(busiest) < len(by_node):
        lines.append(f"... and {len(by_node) - len(busiest)} nodes whose calls took less time")
    return lines


def _slowest_call(calls: Sequence[CallSpan], nodes: dict[str, str]) -> str:
    """The slowest expert, and what took most of its time. Of those that answered, when there are any."""
    answered = [call for call in calls if call.outcome == "answered"]
    call = max(answered or calls, key=lambda call: call.total_s)
    per_stage: dict[str, float] = {}
    for stage in call.stages:
        per_stage[_SAID[stage.name]] = per_stage.get(_SAID[stage.name], 0.0) + stage.seconds
    most = max(per_stage, key=lambda said: per_stage[said])
    name = fit(nodes[call.node_id], MAX_NODE_COLUMNS)
    return f"{_label(call)}, {_ms(call.total_s)} ms, {_ms(per_stage[most])} of it {most}, on {name}"


def _by_node(calls: Sequence[CallSpan]) -> list[CallSpan]:
    """The calls of one node side by side, nodes and calls in order of start: a node takes all in one message."""
    starts: dict[str, float] = {}
    for call in calls:
        starts[call.node_id] = min(call.chosen_s, starts.get(call.node_id, call.chosen_s))
    order = {node_id: place for place, node_id in enumerate(sorted(starts, key=lambda node_id: starts[node_id]))}
    return sorted(calls, key=lambda call: (order[call.node_id], call.chosen_s))


def _slowest(spans: Sequence[_Timed], number: int) -> list[_Timed]:
    """The slowest few, in their order."""
    if len(spans) <= number:
        return list(spans)
    places = sorted(range(len(spans)), key=lambda place: spans[place].start_s - spans[place].end_s)
    return [spans[place] for place in sorted(places[:number])]


def _label(span: SectionSpan | CallSpan) -> str:
    if isinstance(span, SectionSpan):
        return span.name[:MAX_LABEL_COLUMNS]
    text = span.uid if span.attempt == 1 else f"{span.uid} try {span.attempt}"
    return text if len(text) <= MAX_LABEL_COLUMNS else ".." + text[2 - MAX_LABEL_COLUMNS :]


def _call_bar(call: CallSpan, round_: RoundSpan, columns: int) -> str:
    marked = [(_MARKS[stage.name], stage.start_s, stage.end_s) for stage in call.stages]
    bar = draw_bar(marked, round_.start_s, round_.end_s, columns)
    return (bar.rstrip()[:-1] + _FAILED).ljust(columns) if call.outcome == "failed" else bar


def fit(text: str, columns: int) -> str:
    """The text, cut to what a terminal shows in so many columns."""
    while _columns(text) > columns:
        text = text[: -max(1, (len(text) - columns) // 2)]
    return text


def _columns(text: str) -> int:
    """How wide a terminal shows it: characters of East Asia take two columns."""
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number else ""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def _bytes(number: int) -> str:
    if number < 1024:
        return f"{number} B"
    if number < 1024**2:
        return f"{number / 1024:.1f} KiB"
    return f"{number / 1024**2:.1f} MiB"
