"""A trainer's copy of one shared chunk: what of its own work the swarm has, and what is still to be sent. Pure.

    model = state last taken + changes sent that it does not contain + what was not sent yet
            \\________________ reference ________________/

So a change that fails is simply not in the reference, and part of the next one; a change that the host has not made an
update of yet (it gathers several) is not lost to the model when a state without it is taken; and once a state contains
it, it counts by that. A change without an answer is in doubt; until that is settled no state is taken.
Policy: docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# L numbers of the chunk


@dataclass(frozen=True, slots=True, eq=False)
class Doubtful:
    """A change that has no answer: `call` sends it again under its id. `model_L`: the model that it was made of."""

    call: Any
    model_L: Tensor
    lost_L: Tensor | None  # by the codec
    since_s: float  # monotonic


@dataclass(slots=True, eq=False)
class ChunkCopy:
    """`version` is that of the state last taken, 0 before the first."""

    cell: int
    reference_L: Tensor
    version: int = 0
    origin: int = 0  # of the fill that the state comes from
    doubtful: Doubtful | None = None
    moved_from_L: Tensor | None = None  # the reference before states were taken that the model does not show yet
    _waiting: list[tuple[int, Tensor]] = field(default_factory=list)  # first version that contains it; as applied by 1

    def change(self, model_L: Tensor) -> Tensor:
        """What the model changed and nobody was sent."""
        return model_L - self.reference_L

    def sent(self, model_L: Tensor, contained_in: int, lost_L: Tensor | None = None) -> None:
        """The host has the change that this model is, but for what the codec lost."""
        new = model_L if lost_L is None else model_L - lost_L
        change = new - self.reference_L
        self.reference_L = new
        self.doubtful = None
        for position, (version, waiting) in enumerate(self._waiting):
            if version == contained_in:  # at most a few: versions grow with every update
                self._waiting[position] = version, waiting + change
                return
        self._waiting.append((contained_in, change))

    def heard(self, version: int) -> None:
        """The host's state is this one: what it took from us before is in the next update at the latest, whatever it
        had said of that."""
        contained: dict[int, Tensor] = {}
        for first, change in self._waiting:
            first = min(first, version + 1)
            contained[first] = contained[first] + change if first in contained else change
        self._waiting = list(contained.items())

    def take(self, values_L: Tensor, version: int) -> None:
        """The host's state; the model follows by `moved`."""
        assert self.doubtful is None, "what it would count twice is not known"
        self._waiting = [(first, change) for first, change in self._waiting if first > version]
        if self.moved_from_L is None:
            self.moved_from_L = self.reference_L
        self.reference_L = values_L
        for _, change in self._waiting:
            self.reference_L = self.reference_L + change
        self.version = version

    def adopt(self, values_L: Tensor, version: int, origin: int) -> None:
        """The host's state where that comes from another fill: what was sent before it is not in it, nor will be."""
        self.doubtful = None
        self._waiting = []
        self.origin = origin
        self.take(values_L, version)

    def gave(self, model_L: Tensor, version: int, origin: int) -> None:
        """The host was filled with this model."""
        self.reference_L = model_L
        self.version = version
        self.origin = origin
        self.doubtful = None
        self._waiting = []

    def give_up(self) -> bool:
        """The model will be the reference: nothing is left to be sent. Whether a change was in doubt."""
        doubtful = self.doubtful
        if doubtful is not None:
            self.sent(doubtful.model_L, self.version + 1, doubtful.lost_L)
        self.moved_from_L = None
        return doubtful is not None

    def moved(self, model_L: Tensor) -> Tensor:
        """The model with the states that were taken; what was trained since stays."""
        if self.moved_from_L is None:
            return model_L
        unsent_L = model_L - self.moved_from_L
        self.moved_from_L = None
        return self.reference_L + unsent_L

    def rounded(self, wanted_L: Tensor, written_L: Tensor) -> None:
        """The model took other values than it was given: a rounding is no training, and is not sent."""
        if not torch.equal(wanted_L, written_L):
            self.reference_L = self.reference_L + (written_L - wanted_L)
