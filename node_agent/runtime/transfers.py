"""Rows between the CPU and the device, through page-locked memory where the device is a GPU.

A copy from pageable memory goes through a small buffer of the driver's and holds up the thread; one from page-locked
memory runs at the speed of the bus while the thread goes on to queue kernels. torch keeps freed page-locked memory for
the next time, and gives it out again only when the copies that used it are done. On the CPU nothing is copied that need
not be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The rows of all parts, one after the other, on the device. They may still be on their way: its stream waits."""
    if device.type == "cpu":
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))
    joined = _staging((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype, device)
    torch.cat(list(parts), out=joined)
    return joined.to(device, non_blocking=device.type == "cuda")


def to_cpu(values: Tensor) -> Tensor:
    """The values on the CPU, all there."""
    if values.is_cpu:
        return values
    if values.device.type != "cuda":
        return values.to("cpu")
    arrived = _staging(values.shape, values.dtype, values.device)
    arrived.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return arrived


class Padding:
    """Between rows one after the other, as they travel, and [A, L, ...] with zeros behind the rows of each of A."""

    def __init__(self, num_rows: Sequence[int], longest: int, device: torch.device) -> None:
        self._shape = (len(num_rows), longest)
        self._index: Tensor | None = None  # of each row, its place in [A * L]; None: there is no padding
        if any(number != longest for number in num_rows):
            total = sum(num_rows)
            gaps, gap = [], 0
            for number in num_rows:
                gaps.append(gap)
                gap += longest - number
            counts = torch.tensor([num_rows, gaps], device=device)
            shifts = torch.repeat_interleave(counts[1], counts[0], output_size=total)
            self._index = torch.arange(total, device=device) + shifts

    def pad(self, rows: Tensor) -> Tensor:
        if self._index is None:
            return rows.view(*self._shape, *rows.shape[1:])
        padded = rows.new_zeros(self._shape[0] * self._shape[1], *rows.shape[1:])
        return padded.index_copy_(0, self._index, rows).view(*self._shape, *rows.shape[1:])

    def strip(self, padded: Tensor) -> Tensor:
        rows = padded.reshape(-1, *padded.shape[2:])
        return rows if self._index is None else rows.index_select(0, self._index)


def _staging(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
