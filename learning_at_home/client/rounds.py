"""What both rounds of a layer's calls, forward and backward, have in common."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import NO_COMPRESSION, CallContext
from learning_at_home.client.quorum import Rows
from learning_at_home.errors import CallTimeout, LearningAtHomeError, NotEnoughExperts
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec

PATIENCE_SHARE = 0.25  # of the deadline: when a row's experts are silent for so long, the next best is asked as well
PATIENCE_PACES = 3.0  # ... or, beside the grace time, for so many times what their hosts take on average
MAX_TRIES = 3  # of an expert that raises: of calls that fail one in ten times, one in a thousand is given up
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


def patience_s(context: CallContext, terms: Terms, holders: Set[bytes]) -> float:
    """How long a row that only silent hosts have been asked for waits before it asks anybody else, or once more."""
    longest_s = PATIENCE_SHARE * terms.deadline_s
    paces = [context.stats.pace(holder) for holder in holders]
    means_s = [pace.mean_s for pace in paces if pace is not None]
    if not means_s or len(means_s) < len(paces):
        return longest_s  # nothing is known of one
    return min(longest_s, terms.grace_s + PATIENCE_PACES * max(means_s))


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


def select(tensors: Sequence[Tensor], parts: Sequence[Rows]) -> list[tuple[Tensor, ...]]:
    """Of each part these rows of each tensor.

    Gathered at once: each of torch's operations gives the interpreter lock away, for which other threads wait.
    """
    index = torch.from_numpy(np.concatenate(parts))
    sizes = [len(rows) for rows in parts]
    return list(zip(*[tensor.index_select(0, index).split_with_sizes(sizes) for tensor in tensors], strict=True))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all, one after the other: to be put in their places at once, for the same reason."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors))
