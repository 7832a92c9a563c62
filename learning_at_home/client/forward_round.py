"""The forward round of a DMoE layer's calls: who is asked, and who instead of those that fail.

Synchronous, without autograd. Rows are grouped by expert and experts by node; a `Quorum` says when enough have
answered.
"""

# R rows in the batch, K chosen per row, S slots per row (the most answers that any row has), L grid lines

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learning_at_home.client.choice import Choice
from learning_at_home.client.fanout import (
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
from learning_at_home.client.rounds import MAX_TRIES, Part, Terms, joined, not_enough, patience_s, select, silence
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.client.tracing import section
from learning_at_home.directory.directory import LayerView
from learning_at_home.errors import (
    LearningAtHomeError,
    NetworkError,
    NodeDraining,
    NodeOverloaded,
    UnknownExpert,
)
from learning_at_home.peer_address import PeerAddress
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation

LOOK_AGAIN_S = 0.05  # how often a row without anyone to ask looks into the directory
MOVED = (NetworkError, NodeDraining, UnknownExpert)  # failures after which a cell may soon be served again


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
            patience_s=patience_s(self._context, terms, _holders(view, chosen_RK)),
            deadline=deadline,
            every_row=not passing,
        )
        rows = np.repeat(np.arange(self._num_rows), chosen_RK.shape[1])
        cells = self._asked_RA.reshape(-1)
        if (self._asked_RA[:, 0] < 0).any():
            quorum.excuse(np.flatnonzero(self._asked_RA[:, 0] < 0))
            rows, cells = rows[cells >= 0], cells[cells >= 0]
        with self._context.connections.exchange() as exchange:
            fanout = FanOut(
                self._context, exchange, deadline, tries=MAX_TRIES, compression=terms.compression, traced=self._traced
            )
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
        parts = list(_by_cell(rows, cells, self._terms.layer.max_rows))
        tasks = []
        for (cell, part), inputs in zip(parts, select(self._inputs, [part for _, part in parts]), strict=True):
            holder = view.holders[cell]
            assert holder is not None, "only living cells are chosen, from this same view"
            tasks.append(self._task(cell, holder, part, inputs))
        for task in tasks:
            quorum.asked(task.rows, now)
        fanout.ask(tasks)

    def _task(self, cell: int, holder: PeerAddress, rows: Rows, inputs: tuple[Tensor, ...], retries: int = 0) -> Task:
        """`inputs`: of these rows."""
        layer = self._terms.layer
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
                rest = np.setdiff1d(task.rows, again)
                inputs_again, inputs_of_rest = select(self._inputs, [again, rest])
                fanout.ask_later(self._task(task.cell, task.holder, again, inputs_again, task.retries + 1), at)
                quorum.asked(again, at)
                rows = np.setdiff1d(rows, again)
                self._full[position] = (self._task(task.cell, task.holder, rest, inputs_of_rest, task.retries), at)
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
        results = sorted(self._results, key=lambda result: (result.task.cell, result.task.rows[0]))
        sizes = [len(result.task.rows) for result in results]
        rows = np.concatenate([result.task.rows for result in results]) if results else np.zeros(0, np.int64)
        counts = np.bincount(rows, minlength=num_rows)
        slots = _places_among_equals(rows, counts)
        parts = [
            Part(result.task.uid, result.task.cell, result.task.holder, result.task.rows, slots[end - size : end])
            for result, size, end in zip(results, sizes, itertools.accumulate(sizes), strict=True)
        ]
        num_slots = max(1, int(counts.max()))
        make = torch.empty if counts.min() == num_slots else torch.zeros
        flat = [make((num_rows * num_slots, *out.shape), dtype=DTYPES[out.dtype]) for out in self._outputs]
        cells = np.full(num_rows * num_slots, -1)
        if results:
            places = rows * num_slots + slots
            cells[places] = np.repeat([part.cell for part in parts], sizes)
            for whole, tensors in zip(flat, zip(*map(tensors_of, results), strict=True), strict=True):
                whole.index_copy_(0, torch.from_numpy(places), joined(tensors))
        answers = tuple([whole.view(num_rows, num_slots, *whole.shape[1:]) for whole in flat])
        return Answers(answers, torch.from_numpy(cells.reshape(num_rows, num_slots)), tuple(parts))


def _places_among_equals(rows: Rows, counts: Rows) -> Rows:
    """How many equal ones stand before each. `counts`: how many there are of each number."""
    places = np.empty_like(rows)
    places[np.argsort(rows, kind="stable")] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _holders(view: LayerView, chosen_RK: Tensor) -> set[bytes]:
    """Who is asked for these cells."""
    holders = [view.holders[cell] for cell in torch.unique(chosen_RK).tolist() if cell >= 0]
    return {holder.public_key for holder in holders if holder is not None}


def _by_cell(rows: Rows, cells: Rows, max_rows: int) -> Iterator[tuple[int, Rows]]:
    """The rows of each cell, both in ascending order, at most so many at a time."""
    order = np.lexsort((rows, cells))
    rows, cells = rows[order], cells[order]
    starts = np.flatnonzero(np.diff(cells, prepend=-1)).tolist()
    for start, end in itertools.pairwise((*starts, len(rows))):
        cell = int(cells[start])
        for first in range(start, end, max_rows):
            yield cell, rows[first : min(first + max_rows, end)]
