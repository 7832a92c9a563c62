"""A few bytes that tell a request's rows from others'."""

from __future__ import annotations

from torch import Tensor

NUMBERS = 8  # of the first and of the last row


def fingerprint(rows: Tensor) -> tuple[int, bytes, bytes]:
    """The same for equal rows, which lie on the CPU; different for most others. For statistics, not for proofs."""
    numbers = rows.detach().numpy()
    return len(numbers), numbers[0].ravel()[:NUMBERS].tobytes(), numbers[-1].ravel()[-NUMBERS:].tobytes()
