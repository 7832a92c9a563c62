"""When has a batch enough answers? Per row: who was asked, who answered, how long to wait, whom to ask next.

Pure: knows rows as numbers and time as `now`; no experts, tensors or sockets. Source: the k_min and timeout_after_k_min
rule of Ryabinin & Gusev, 2020, per row; the next best experts that are asked instead of the failed ones are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # distinct row numbers


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before the next answer, or before this moment."""

    until: float


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """These rows need one more expert each: tell `asked` (or `exhausted`), then decide again."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more is worth waiting for. `short_rows` tells whether every row has enough."""


class Quorum:
    """The answers of one round of calls for `num_rows` rows.

    A row is content with `k_min` answers; then its other experts have `grace_s` more. A row that can no longer reach
    k_min with those it waits for needs the next best, and so does one that has waited `patience_s` since it last
    asked: a silent host must not cost the whole deadline.

    `every_row`: the round ends as soon as one row is lost (short, nobody to wait for, nobody to ask), since its
    result is an error anyhow; without it the others are waited for.
    """

    def __init__(
        self,
        num_rows: int,
        k_min: int,
        *,
        grace_s: float,
        patience_s: float,
        deadline: float,
        every_row: bool = True,
    ) -> None:
        self._k_min = k_min
        self._every_row = every_row
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._deadline = deadline
        self._answered = np.zeros(num_rows, np.int64)
        self._pending = np.zeros(num_rows, np.int64)
        self._content_at = np.full(num_rows, math.inf)
        self._patient_until = np.full(num_rows, -math.inf)
        self._nobody_until = np.full(num_rows, -math.inf)
        self._exhausted = np.zeros(num_rows, bool)
        self._num_open = 0  # experts asked, not heard of
        self._num_short = num_rows  # rows with fewer than k_min answers, as far as the arrays tell
        self._told: list[tuple[Rows, float]] = []  # answers that are not in the arrays yet
        self._num_told = 0  # their rows
        # Most decisions need no look at any row: while answers come and nothing else, there is nothing to do
        self._ask_at = -math.inf  # before this moment, while any row is short
        self._quiet_until = -math.inf  # before this moment, as long as one is open

    def asked(self, rows: Rows, now: float) -> None:
        """One more expert was asked for each of these rows."""
        self._num_open += 1
        self._look_again()
        self._pending[rows] += 1
        self._patient_until[rows] = now + self._patience_s

    def excuse(self, rows: Rows) -> None:
        """These rows need no answer, and nobody was asked for them."""
        self._answered[rows] = self._k_min
        self._num_short = int(np.count_nonzero(self._answered < self._k_min))
        self._look_again()

    def answered(self, rows: Rows, now: float) -> None:
        """One of the experts that were asked has answered for these rows."""
        self._told.append((rows, now))
        self._num_told += len(rows)
        self._num_open -= 1
        if self._k_min > 1:
            self._look_again()  # a row may have lost hope by its last answer

    def failed(self, rows: Rows) -> None:
        """One of the experts that were asked will not answer for these rows."""
        self._pending[rows] -= 1
        self._num_open -= 1
        self._look_again()

    def postpone(self, rows: Rows, until: float) -> None:
        """Nobody can be asked for these rows before this moment."""
        self._nobody_until[rows] = until
        self._look_again()

    def exhausted(self, rows: Rows) -> None:
        """Nobody is left to be asked for these rows."""
        self._exhausted[rows] = True
        self._look_again()

    def decide(self, now: float) -> Wait | Ask | Done:
        """What to do now. `Ask` is repeated until `asked`, `postpone` or `exhausted` was told for its rows."""
        if self._num_open > 0:
            if now < self._ask_at and self._num_told < self._num_short:
                return Wait(self._ask_at)
            if now < self._quiet_until:
                return Wait(self._quiet_until)
        self._take_in_answers()
        if now < self._ask_at and self._num_open > 0 < self._num_short:
            return Wait(self._ask_at)
        return self._look_at_every_row(now) if self._num_short else self._wait_for_the_others(now)

    def _look_again(self) -> None:
        self._ask_at = self._quiet_until = -math.inf

    def _take_in_answers(self) -> None:
        told, self._told, self._num_told = self._told, [], 0
        if not told:
            return
        if not self._num_short:
            for rows, _ in told:
                self._pending[rows] -= 1  # more would tell nothing new
            return
        # All at once where a row is content by the first of them; else one by one.
        for together in [told] if self._k_min == 1 else [[answer] for answer in told]:
            rows = np.concatenate([rows for rows, _ in together])
            times = np.repeat([now for _, now in together], [len(rows) for rows, _ in together])
            counts = np.bincount(rows, minlength=len(self._answered))
            self._pending -= counts
            was_short = self._answered < self._k_min
            self._answered += counts
            by_these = (was_short & (self._answered >= self._k_min))[rows]
            self._content_at[rows[by_these][::-1]] = times[by_these][::-1]  # of several the first: it is written last
        self._num_short = int(np.count_nonzero(self._answered < self._k_min))

    def _look_at_every_row(self, now: float) -> Wait | Ask | Done:
        short = self._answered < self._k_min
        waiting = self._pending > 0
        lost = short & self._exhausted & ~waiting
        if now >= self._deadline or (self._every_row and lost.any()):
            return Done()
        short &= ~lost
        if not short.any():
            return self._wait_for_the_others(now)
        hopeless = self._answered + self._pending < self._k_min
        ask_at = np.maximum(np.where(hopeless, -math.inf, self._patient_until), self._nobody_until)
        ask_at[~short | self._exhausted] = math.inf
        if (ask_at <= now).any():
            return Ask(np.flatnonzero(ask_at <= now))
        until = min(float(ask_at.min()), self._deadline)
        self._ask_at = -math.inf if lost.any() else until
        # Rows that are content from now on have their grace time, as have those that are.
        self._quiet_until = min(until, float(self._content_at[waiting].min(initial=now)) + self._grace_s)
        return Wait(until)

    def short_rows(self) -> Rows:
        """The rows with fewer than k_min answers."""
        self._take_in_answers()
        return np.flatnonzero(self._answered < self._k_min)

    def rows_without_answer(self) -> Rows:
        self._take_in_answers()
        return np.flatnonzero(self._answered == 0)

    def _wait_for_the_others(self, now: float) -> Wait | Done:
        content_at = self._content_at[self._pending > 0]
        if not len(content_at):
            return Done()
        until = min(float(content_at.max()) + self._grace_s, self._deadline)
        if now >= until:
            return Done()
        self._quiet_until = min(until, float(content_at.min()) + self._grace_s)
        return Wait(until)
