"""One DMoE layer's rounds of calls: who is asked forward, who instead of those that fail, who is asked backward.

Synchronous, without autograd. Rows are grouped by expert and experts by node; a `Quorum` says when enough have
answered.
"""

# R rows in the batch, K chosen per row, S slots per row (the most answers that any row has), L grid lines

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from learning_at_home.client.choice import Choice
from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import (
    NO_COMPRESSION,
    CallContext,
    FanOut,
    Result,
    Task,
    expected_of,
    retry_at,
    tensors_of,
)
from learning_at_home.client.living import LivingExperts
from learning_at_home.client.quorum import Ask, Done, Quorum, Rows, Wait
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.tracing import section
from learning_at_home.directory.directory import LayerView
from learning_at_home.errors import (
    CallTimeout,
    LearningAtHomeError,
    NetworkError,
    NodeDraining,
    NodeOverloaded,
    NotEnoughExperts,
    UnknownExpert,
)
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation

PATIENCE_SHARE = 0.25  # of the deadline: when a row's experts are silent for so long, the next best is asked as well
PATIENCE_PACES = 3.0  # ... or, beside the grace time, for so many times what their hosts take on average
LOOK_AGAIN_S = 0.05  # how often a row without anyone to ask looks into the directory
MOVED = (NetworkError, NodeDraining, UnknownExpert)  # failures after which a cell may soon be served again
MAX_CAUSES_SHOWN = 4  # in a message; the error's `causes` has all

OnMissing = Literal["raise", "pass"]  # what becomes of rows with fewer than k_min answers


@dataclass(frozen=True, slots=True)
class Terms:
    """How a layer's calls are made."""

    layer: LayerSpec
    k_min: int
    deadline_s: float
    grace_s: float
    compression: Compression = NO_COMPRESSION
    on_missing: OnMissing = "raise"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A call that answered forward: these rows of the batch, in these slots of the answers."""

    uid: str
    cell: int
    holder: PeerAddress
    rows: Rows
    slots: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What forward brought. `tensors` [R, S, *row shape] have zeros in empty slots; `cells` [R, S] is -1 there.

    A row without any answer passes through: it was given to no expert, or `on_missing` says so.
    """

    tensors: tuple[Tensor, ...]  # one per output of an expert
    cells: Tensor
    parts: tuple[Part, ...]


class ForwardRound:
    """Ask the chosen experts, and the next best where too few answer. Used once."""

    def __init__(
        self,
        context: CallContext,
        terms: Terms,
        living: LivingExperts,
        inputs: tuple[Tensor, ...],
        choice: Choice,
        traced: TracedRound | None = None,
        operation: Operation = "forward",
    ) -> None:
        """`inputs` [R, *row shape]: detached, on the CPU, as the choice's scores are."""
        self._traced = traced
        self._operation = operation
        self._context = context
        self._terms = terms
        self._living = living
        self._inputs = inputs
        self._num_rows = len(inputs[0])
        self._outputs = terms.layer.outputs
        self._choice = choice
        self._results: list[Result] = []
        self._causes: dict[str, LearningAtHomeError] = {}
        self._full: list[tuple[Task, float]] = []  # refused for want of room, and when to ask again
        self._gone: list[tuple[Task, bool]] = []  # failed since their host is gone, and whether by the network

    def run(self, view: LayerView, chosen_RK: Tensor, deadline: float) -> Answers:
        """The answers. A row whose first cell is -1 is given to nobody.

        Raises NotEnoughExperts when another has fewer than k_min by the deadline, or all have failed, unless such rows
        pass through.
        """
        terms, clock = self._terms, self._context.clock
        passing = terms.on_missing == "pass"
        self._asked_RA = chosen_RK.numpy().copy()  # changed below
        quorum = Quorum(
            self._num_rows,
            terms.k_min,
            grace_s=terms.grace_s,
            patience_s=_patience_s(self._context, terms, _holders(view, chosen_RK)),
            deadline=deadline,
            every_row=not passing,
        )
        rows = np.repeat(np.arange(self._num_rows), chosen_RK.shape[1])
        cells = self._asked_RA.reshape(-1)
        if (self._asked_RA[:, 0] < 0).any():
            quorum.excuse(np.flatnonzero(self._asked_RA[:, 0] < 0))
            rows, cells = rows[cells >= 0], cells[cells >= 0]
        with self._context.connections.exchange() as exchange:
            fanout = FanOut(self._context, exchange, deadline, compression=terms.compression, traced=self._traced)
            if len(rows):
                self._ask(fanout, quorum, view, rows, cells)
            while not isinstance(decision := quorum.decide(clock.monotonic_s()), Done):
                # What has arrived counts before anybody else is asked.
                until = decision.until if isinstance(decision, Wait) else clock.monotonic_s()
                if result := fanout.next_result(until):
                    self._take(quorum, result)
                elif isinstance(decision, Ask):
                    self._ask_next_best(fanout, quorum, decision.rows)
            for task in fanout.leave_behind(terms.grace_s):
                self._causes.setdefault(task.uid, silence(task.uid, task.holder))
        short_rows = quorum.short_rows()
        if len(short_rows) and not passing:
            raise not_enough(terms.layer.prefix, len(short_rows), self._num_rows, terms.k_min, self._causes)
        with section(self._traced, "assemble"):
            self._drop_answers_of(short_rows)
            return self._assemble()

    def _ask(self, fanout: FanOut, quorum: Quorum, view: LayerView, rows: Rows, cells: Rows) -> None:
        """Ask for each row the expert of the cell beside it."""
        now = self._context.clock.monotonic_s()
        tasks = []
        for cell, rows_of_cell in _by_cell(rows, cells):
            holder = view.holders[cell]
            assert holder is not None, "only living cells are chosen, from this same view"
            tasks += [self._task(cell, holder, part) for part in _split(rows_of_cell, self._terms.layer.max_rows)]
        for task in tasks:
            quorum.asked(task.rows, now)
        fanout.ask(tasks)

    def _task(self, cell: int, holder: PeerAddress, rows: Rows, retries: int = 0) -> Task:
        layer = self._terms.layer
        inputs = _select(self._inputs, rows)
        uid = str(layer.cells.uid(layer.prefix, cell))
        expected = expected_of(self._outputs, len(rows))
        return Task(uid, cell, holder, self._operation, inputs, len(rows), rows, expected, retries)

    def _take(self, quorum: Quorum, result: Result) -> None:
        now = self._context.clock.monotonic_s()
        if result.error is None:
            self._results.append(result)
            quorum.answered(result.task.rows, now)
            return
        self._causes[result.task.uid] = result.error
        quorum.failed(result.task.rows)
        if isinstance(result.error, NodeOverloaded):
            if (at := retry_at(result.task, result.error, now)) is not None:
                self._full.append((result.task, at))
        elif isinstance(result.error, MOVED):
            self._gone.append((result.task, isinstance(result.error, NetworkError)))

    def _ask_next_best(self, fanout: FanOut, quorum: Quorum, rows: Rows) -> None:
        """One more expert for each row: the next best living one, else one that was full.

        Failing that, a row waits for hosts that moved or come back, if there are such, or is exhausted.
        """
        view, index = self._living.now()
        self._allow_those_back(view)
        asked_rA = torch.from_numpy(self._asked_RA[rows])
        cells = self._choice.next_best(view, index, rows, asked_rA).numpy()
        found = cells >= 0
        if found.any():
            column_R = np.full((self._num_rows, 1), -1)
            column_R[rows[found], 0] = cells[found]
            self._asked_RA = np.concatenate([self._asked_RA, column_R], axis=1)
            self._ask(fanout, quorum, view, rows[found], cells[found])
        left = self._ask_full_ones_again(fanout, quorum, rows[~found])
        if self._gone:
            quorum.postpone(left, self._context.clock.monotonic_s() + LOOK_AGAIN_S)
        else:
            quorum.exhausted(left)

    def _allow_those_back(self, view: LayerView) -> None:
        """Cells that may be asked once more: the directory has their unreachable host back, or another host.

        Only for the rows that failed: the cell may have answered others, and one cell never counts twice in a row.
        """
        still_gone = []
        for task, by_network in self._gone:
            now_held_by = view.holders[task.cell]
            if now_held_by is not None and (by_network or now_held_by != task.holder):
                asked_rA = self._asked_RA[task.rows]
                self._asked_RA[task.rows] = np.where(asked_rA == task.cell, -1, asked_rA)
            else:
                still_gone.append((task, by_network))
        self._gone = still_gone

    def _ask_full_ones_again(self, fanout: FanOut, quorum: Quorum, rows: Rows) -> Rows:
        """The rows that are left when those that a full node refused will be sent to it again."""
        for position, (task, at) in enumerate(self._full):
            again = np.intersect1d(rows, task.rows)
            if len(again) and at < fanout.deadline:
                fanout.ask_later(self._task(task.cell, task.holder, again, task.retries + 1), at)
                quorum.asked(again, at)
                rows = np.setdiff1d(rows, again)
                rest = np.setdiff1d(task.rows, again)
                self._full[position] = (self._task(task.cell, task.holder, rest, task.retries), at)
        return rows

    def _drop_answers_of(self, rows: Rows) -> None:
        """Rows that pass through do so whole, and train nobody."""
        if not len(rows):
            return
        kept_results = []
        for result in self._results:
            task = result.task
            kept = ~np.isin(task.rows, rows)
            if kept.all():
                kept_results.append(result)
            elif kept.any():
                task.rows = task.rows[kept]
                left = tuple([tensor[torch.from_numpy(kept)] for tensor in tensors_of(result)])
                kept_results.append(Result(task, None, None, left))
        self._results = kept_results

    def _assemble(self) -> Answers:
        """The answers in dense tensors; slots are given by cell, so that the sum does not depend on who was faster."""
        num_rows = self._num_rows
        counts = np.zeros(num_rows, np.int64)
        parts, answered = [], []
        for result in sorted(self._results, key=lambda result: (result.task.cell, result.task.rows[0])):
            task = result.task
            parts.append(Part(task.uid, task.cell, task.holder, task.rows, counts[task.rows]))
            answered.append(tensors_of(result))
            counts[task.rows] += 1
        num_slots = max(1, int(counts.max()))
        dense = counts.min() == num_slots
        make = torch.empty if dense else torch.zeros
        flat = [make((num_rows * num_slots, *out.shape), dtype=DTYPES[out.dtype]) for out in self._outputs]
        cells = np.full((num_rows, num_slots), -1)
        for part, tensors in zip(parts, answered, strict=True):
            places = torch.from_numpy(part.rows * num_slots + part.slots)
            for whole, tensor in zip(flat, tensors, strict=True):
                whole.index_copy_(0, places, tensor)
            cells[part.rows, part.slots] = part.cell
        tensors = tuple([whole.view(num_rows, num_slots, *whole.shape[1:]) for whole in flat])
        return Answers(tensors, torch.from_numpy(cells), tuple(parts))


def ask_backward(
    context: CallContext,
    terms: Terms,
    inputs: tuple[Tensor, ...],
    gradients_RSx: tuple[Tensor, ...],
    parts: tuple[Part, ...],
    traced: TracedRound | None = None,
    operation: Operation = "backward",
) -> tuple[Tensor, ...]:
    """The gradients of the float inputs [R, *row shape], from the experts that answered forward.

    Their hosts update them by a "backward", not by a "gradient".
    All tensors are detached, on the CPU. What an expert does not answer is left out of the sum and counted; rows of
    which no expert answers get zero and are counted. Raises NotEnoughExperts when nobody answers at all, unless rows
    without an answer pass through.
    """
    found = tuple([torch.zeros_like(tensor) for tensor in inputs if tensor.is_floating_point()])
    if not parts:
        return found
    num_rows, num_slots = gradients_RSx[0].shape[:2]
    flat = tuple([gradient_RSx.flatten(0, 1) for gradient_RSx in gradients_RSx])
    asked_for = terms.layer.float_inputs
    tasks = []
    with section(traced, "gather"):
        for part in parts:
            tensors = _select(inputs, part.rows) + _select(flat, part.rows * num_slots + part.slots)
            expected = expected_of(asked_for, len(part.rows))
            tasks.append(
                Task(part.uid, part.cell, part.holder, operation, tensors, len(part.rows), part.rows, expected)
            )
    results, causes, zero_rows = _run_backward(context, terms, tasks, num_rows, traced)
    if not results and terms.on_missing == "raise":
        raise not_enough(terms.layer.prefix, num_rows, num_rows, 1, causes, operation)
    asked = sum(len(task.rows) for task in tasks)
    context.stats.lost_gradients(zero_rows, asked - sum(len(result.task.rows) for result in results))
    with section(traced, "scatter"):
        for result in sorted(results, key=lambda result: (result.task.cell, result.task.rows[0])):
            rows = torch.from_numpy(result.task.rows)
            for whole, tensor in zip(found, tensors_of(result), strict=True):
                whole.index_add_(0, rows, tensor)
    return found


def _run_backward(
    context: CallContext, terms: Terms, tasks: list[Task], num_rows: int, traced: TracedRound | None
) -> tuple[list[Result], dict[str, LearningAtHomeError], int]:
    """The good results, the causes of the others, and how many rows have no result."""
    now = context.clock.monotonic_s()
    deadline = now + terms.deadline_s
    quorum = Quorum(
        num_rows, terms.k_min, grace_s=terms.grace_s, patience_s=terms.deadline_s, deadline=deadline, every_row=False
    )
    quorum.exhausted(np.arange(num_rows))  # only who computed a row forward can compute it backward
    passed = np.ones(num_rows, bool)
    for task in tasks:
        passed[task.rows] = False
    if passed.any():
        quorum.excuse(np.flatnonzero(passed))
    results, causes = [], {}
    again_at = now + _patience_s(context, terms, {task.holder.public_key for task in tasks})
    with context.connections.exchange() as exchange:
        fanout = FanOut(context, exchange, deadline, insist=True, compression=terms.compression, traced=traced)
        for task in tasks:
            quorum.asked(task.rows, now)
        fanout.ask(tasks)
        while isinstance(decision := quorum.decide(context.clock.monotonic_s()), Wait):
            result = fanout.next_result(min(decision.until, again_at))
            if result is None:
                if context.clock.monotonic_s() >= again_at:
                    fanout.ask_silent_again(quorum.rows_without_answer())
                    again_at = deadline
                continue
            if result.error is None:
                results.append(result)
                quorum.answered(result.task.rows, context.clock.monotonic_s())
            else:
                causes[result.task.uid] = result.error
                quorum.failed(result.task.rows)
        for task in fanout.leave_behind(terms.grace_s):
            causes.setdefault(task.uid, silence(task.uid, task.holder))
    return results, causes, len(quorum.rows_without_answer())


def _patience_s(context: CallContext, terms: Terms, holders: Set[bytes]) -> float:
    """How long a row that only silent hosts have been asked for waits before it asks anybody else, or once more."""
    longest_s = PATIENCE_SHARE * terms.deadline_s
    paces = [context.stats.pace(holder) for holder in holders]
    means_s = [pace.mean_s for pace in paces if pace is not None]
    if not means_s or len(means_s) < len(paces):
        return longest_s  # nothing is known of one
    return min(longest_s, terms.grace_s + PATIENCE_PACES * max(means_s))


def _holders(view: LayerView, chosen_RK: Tensor) -> set[bytes]:
    """Who is asked for these cells."""
    holders = [view.holders[cell] for cell in torch.unique(chosen_RK).tolist() if cell >= 0]
    return {holder.public_key for holder in holders if holder is not None}


def silence(uid: str, holder: PeerAddress) -> LearningAtHomeError:
    """The cause of an expert that was left behind."""
    return CallTimeout(f"{uid}: no answer in the time that the others needed, and the grace time", peer=holder.name)


def not_enough(
    prefix: str,
    num_short: int,
    num_rows: int,
    k_min: int,
    causes: dict[str, LearningAtHomeError],
    what: str = "forward",
) -> NotEnoughExperts:
    """The error, with the first causes in its message."""
    shown = "; ".join(f"{uid}: {error}" for uid, error in list(causes.items())[:MAX_CAUSES_SHOWN])
    more = f"; and {len(causes) - MAX_CAUSES_SHOWN} more in .causes" if len(causes) > MAX_CAUSES_SHOWN else ""
    return NotEnoughExperts(
        f"layer {prefix}, {what}: {num_short} of {num_rows} rows have fewer than k_min={k_min} answers "
        f"({shown or 'no expert is alive'}{more})",
        causes=causes,
    )


def _by_cell(rows: Rows, cells: Rows) -> Iterator[tuple[int, Rows]]:
    """The rows of each cell, both in ascending order."""
    order = np.lexsort((rows, cells))
    rows, cells = rows[order], cells[order]
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    yield from zip(cells[starts].tolist(), np.split(rows, starts[1:]), strict=True)


def _select(tensors: tuple[Tensor, ...], rows: Rows) -> tuple[Tensor, ...]:
    index = torch.from_numpy(rows)
    return tuple([tensor.index_select(0, index) for tensor in tensors])


def _split(rows: Rows, max_rows: int) -> list[Rows]:
    return [rows[start : start + max_rows] for start in range(0, len(rows), max_rows)]
