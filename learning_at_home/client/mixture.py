"""The mathematics of the mixture: a softmax over only the experts that answered, and the loss that balances their load.

Pure tensor code, differentiated by autograd: given who answered, gradients are exactly those of a local mixture.
Sources: Ryabinin & Gusev, 2020 (averaging over those that answered); Shazeer et al., 2017, eq. 6 and 7 (importance).
"""

# R rows in the batch, S slots per row (the most answers that any row has), D features (all of a row's), C cells

from __future__ import annotations

import torch
from torch import Tensor


def mixture_weights(scores_RS: Tensor, answered_RS: Tensor) -> Tensor:
    """Softmax over the slots that hold an answer; the others get zero. Every row must have at least one."""
    return scores_RS.masked_fill(~answered_RS, float("-inf")).softmax(dim=1)


def mix(answers_RSx: Tensor, weights_RS: Tensor) -> Tensor:
    """The weighted mean [R, *row shape] of answers [R, S, *row shape]. Empty slots must hold zeros."""
    flat_RSD = answers_RSx.flatten(2)
    mixed_R1D = torch.bmm(weights_RS.to(flat_RSD).unsqueeze(1), flat_RSD)
    return mixed_R1D.view(len(answers_RSx), *answers_RSx.shape[2:])


def importance_loss(weights_RS: Tensor, cells_RS: Tensor, living_C: Tensor) -> Tensor:
    """The squared coefficient of variation of the living cells' importance: zero when all weigh the same in the batch.

    `cells_RS` is -1 in empty slots; `living_C` are the flat indices of the cells that could have been chosen.
    """
    filled = cells_RS >= 0
    cells, position = torch.unique(torch.cat([living_C, cells_RS[filled]]), return_inverse=True)
    importance_C = weights_RS.new_zeros(len(cells)).index_add(0, position[len(living_C) :], weights_RS[filled])
    mean = importance_C.mean()
    return importance_C.var(unbiased=False) / mean.square().clamp_min(torch.finfo(mean.dtype).tiny)
