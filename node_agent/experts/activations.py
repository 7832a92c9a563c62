"""Forwards whose backward may follow, with what autograd keeps of them: then it need not be computed again.

A trainer's backward mostly finds the weights that its forward had: it follows at once, and an expert of many is rarely
asked in between. What is kept is a guess about the future, bounded in memory; whoever is not found here is computed
again, with the same result. Not thread-safe: one thread at a time computes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PER_EXPERT = 4  # each is compared with the rows of a backward
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per number


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One that autograd has recorded."""

    rows: Tensor  # a leaf that asks for its gradient
    output: Tensor
    num_bytes: int  # of the rows, the output and the tensors that autograd keeps, about


class Activations:
    """The latest forwards of a node's experts."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[int, tuple[str, Forward]] = OrderedDict()  # the oldest first
        self._of_expert: dict[str, list[int]] = {}
        self._next_number = 0

    def keep(self, expert: str, forward: Forward) -> None:
        """Remember it instead of the oldest. Alone it must not be more than the limit."""
        own = self._of_expert.setdefault(expert, [])
        if len(own) >= MAX_PER_EXPERT:
            self._drop(own[0])
        while self.num_bytes + forward.num_bytes > self.limit_bytes:
            self._drop(next(iter(self._kept)))
        number, self._next_number = self._next_number, self._next_number + 1
        self._kept[number] = expert, forward
        self._of_expert.setdefault(expert, []).append(number)
        self.num_bytes += forward.num_bytes

    def take(self, expert: str, rows: Tensor) -> Forward | None:
        """The expert's forward of just these rows, bit for bit, which is forgotten: autograd frees it on backward."""
        for number in self._of_expert.get(expert, ()):
            forward = self._kept[number][1]
            if _same_bits(forward.rows, rows):
                self._drop(number)
                return forward
        return None

    def forget(self, expert: str) -> None:
        """All of an expert's, because its weights change."""
        for number in list(self._of_expert.get(expert, ())):
            self._drop(number)

    def _drop(self, number: int) -> None:
        expert, forward = self._kept.pop(number)
        self.num_bytes -= forward.num_bytes
        own = self._of_expert[expert]
        own.remove(number)
        if not own:
            del self._of_expert[expert]


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not theirs.is_contiguous():
        return False
    bits = _BITS[ours.element_size()]
    return torch.equal(ours.detach().view(bits), theirs.detach().view(bits))
