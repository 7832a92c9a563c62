"""How named parameters lie in the chunks of a shared group: end to end, in their order, the last chunk padded by zeros.

Pure. Trainers whose fingerprints are equal mean the same number by the same place.
"""

# C chunks in use, L numbers of a chunk

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learning_at_home.errors import NonFiniteTensor, SpecMismatch
from learning_at_home.project import LayerSpec
from learning_at_home.shared_parameters import FINGERPRINT_BITS
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import DTYPES

NamedTensors = Sequence[tuple[str, Tensor]]


class Layout:
    """Of these parameters, which are read and written in place."""

    def __init__(self, layer: LayerSpec, parameters: NamedTensors) -> None:
        """Raises SpecMismatch when they do not fit the layer, and says what would."""
        where = f"layer {layer.prefix}"
        if not parameters:
            raise SpecMismatch(f"{where}: there are no parameters to share")
        for name, parameter in parameters:
            if not parameter.is_floating_point():
                raise SpecMismatch(f"{where}: {name} is {parameter.dtype}; only floating-point parameters are shared")
        self._where = where
        self._parameters = tuple(parameters)
        self._sizes = [parameter.numel() for _, parameter in parameters]
        self.dtype = DTYPES[layer.dtype]
        self.num_numbers = sum(self._sizes)
        self.chunk_size = layer.hidden_size
        self.num_chunks = math.ceil(self.num_numbers / self.chunk_size)
        if self.num_chunks > layer.grid[0]:
            raise SpecMismatch(
                f"{where}: these {len(parameters)} parameters are {self.num_numbers:,} numbers; the layer holds "
                f"{layer.grid[0]} chunks of {self.chunk_size:,}. Give it grid = [{self.num_chunks}], or a larger "
                "hidden_size"
            )
        self.fingerprint = fingerprint([(name, tuple(parameter.shape)) for name, parameter in parameters])

    def read(self) -> Tensor:
        """The parameters now: [C, L], a copy on the CPU in the layer's dtype."""
        flat = torch.zeros(self.num_chunks * self.chunk_size, dtype=self.dtype)
        for part, (_, parameter) in zip(flat[: self.num_numbers].split(self._sizes), self._parameters, strict=True):
            part.copy_(parameter.detach().reshape(-1))
        return flat.view(self.num_chunks, self.chunk_size)

    def write(self, flat_CL: Tensor) -> None:
        """Give the parameters these values, rounded to their own dtype."""
        parts = flat_CL.reshape(-1)[: self.num_numbers].split(self._sizes)
        with torch.no_grad():
            for part, (_, parameter) in zip(parts, self._parameters, strict=True):
                parameter.copy_(part.view(parameter.shape))

    def largest(self, cell: int) -> float:
        """What no number of this chunk may exceed, so that each parameter's own dtype can hold it."""
        first = cell * self.chunk_size
        ends = itertools.accumulate(self._sizes)
        found = [
            torch.finfo(parameter.dtype).max
            for end, size, (_, parameter) in zip(ends, self._sizes, self._parameters, strict=True)
            if end > first and end - size < first + self.chunk_size
        ]
        return min(found)

    def check_finite(self, flat_CL: Tensor) -> None:
        """Raises NonFiniteTensor that names the parameter."""
        if is_finite(flat_CL):
            return
        spoilt = [name for name, parameter in self._parameters if not is_finite(parameter.detach())]
        raise NonFiniteTensor(
            f"{self._where}: {', '.join(spoilt) or 'a change'} holds NaN or infinity; nothing was sent, and what the "
            "swarm holds is sound: reset() takes it"
        )


def fingerprint(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Of names and shapes, in their order; never 0."""
    text = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return digest >> 256 - FINGERPRINT_BITS or 1
