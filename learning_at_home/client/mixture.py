"""The mathematics of the mixture: what an answer weighs, and the losses that balance the experts' load.

Pure tensor code, differentiated by autograd: given who answered, gradients are exactly those of a local mixture.
Formulas and sources: docs/layer.md.
"""

# R rows in the batch, S slots per row (the most answers that any row has), D features (all of a row's),
# L grid lines, N living cells, C cells that were alive or answered, k chosen per row

from __future__ import annotations

import torch
from torch import Tensor

from learning_at_home.client.selection import CellIndex, all_scores, best_cells, cell_scores


def mixture_weights(scores_RS: Tensor, answered_RS: Tensor) -> Tensor:
    """Softmax over the slots that hold an answer; the others get zero. Every row must have at least one."""
    return scores_RS.masked_fill(~answered_RS, float("-inf")).softmax(dim=1)


def mix(answers_RSx: Tensor, weights_RS: Tensor) -> Tensor:
    """The weighted sum [R, *row shape] of answers [R, S, *row shape]. Empty slots must hold zeros."""
    flat_RSD = answers_RSx.reshape(*answers_RSx.shape[:2], -1)
    mixed_R1D = torch.bmm(weights_RS.to(flat_RSD).unsqueeze(1), flat_RSD)
    return mixed_R1D.view(len(answers_RSx), *answers_RSx.shape[2:])


def add_rest(mixed: Tensor, x: Tensor, rest_R: Tensor) -> Tensor:
    """`mixed` and x, both [R, *row shape], the latter weighed by what each row's answers leave over."""
    return mixed + x * rest_R.to(x).view(-1, *[1] * (x.dim() - 1))


def probabilities(lines_RL: Tensor, index: CellIndex, cells_RS: Tensor) -> Tensor:
    """The softmax over all cells of the index, at these cells: [R, S], zero where `cells_RS` is -1.

    A cell that is not in the index counts as if it were, for the rows that have it.
    """
    answered_RS = cells_RS >= 0
    scores_RS = cell_scores(lines_RL, index.grid, cells_RS.clamp_min(0))
    _, known_RS = index.positions(cells_RS.cpu())
    whole_RS = all_scores(lines_RL, index).logsumexp(dim=0).unsqueeze(1).expand_as(scores_RS)
    whole_RS = torch.where(known_RS.to(scores_RS.device), whole_RS, torch.logaddexp(whole_RS, scores_RS))
    return (scores_RS - whole_RS).exp().masked_fill(~answered_RS, 0.0)


def importance_loss(weights_RS: Tensor, cells_RS: Tensor, living_C: Tensor) -> Tensor:
    """The squared coefficient of variation of the living cells' importance: zero when all weigh the same in the batch.

    `cells_RS` is -1 in empty slots; `living_C` are the flat indices of the cells that could have been chosen.
    Source: Shazeer et al., 2017, eq. 6 and 7.
    """
    filled = cells_RS >= 0
    cells, position = torch.unique(torch.cat([living_C, cells_RS[filled]]), return_inverse=True)
    importance_C = weights_RS.new_zeros(len(cells)).index_add(0, position[len(living_C) :], weights_RS[filled])
    return squared_variation(importance_C)


def load_loss(lines_RL: Tensor, clean_RL: Tensor, deviation_RL: Tensor, index: CellIndex, k: int) -> Tensor:
    """The squared coefficient of variation of the living cells' load: of the rows that each would get, by probability.

    `lines_RL` are the scores with noise, `clean_RL` without, `deviation_RL` the noise's standard deviation per line. A
    row goes to a cell with the probability that the cell is among its k best if only that cell's noise were drawn
    anew. Takes memory for all rows times all cells. Source: Shazeer et al., 2017, appendix A, eq. 8 to 11.
    """
    if len(index) <= k:
        return clean_RL.sum() * 0.0  # every row goes to every cell
    noisy_NR, clean_NR = all_scores(lines_RL, index), all_scores(clean_RL, index)
    deviation_NR = all_scores(deviation_RL.square(), index).sqrt()
    best = noisy_NR.topk(k + 1, dim=0).values
    to_beat_NR = torch.where(noisy_NR > best[k], best[k], best[k - 1])  # the k-th best of the other cells
    load_N = torch.special.ndtr((clean_NR - to_beat_NR) / deviation_NR).sum(dim=1)
    return squared_variation(load_N)


def switch_loss(lines_RL: Tensor, index: CellIndex) -> Tensor:
    """N times the sum over cells of the share of rows whose best it is, times its mean probability: 1 when even.

    Source: Fedus et al., 2021, eq. 4 to 6.
    """
    best_R1 = best_cells(lines_RL.detach(), index, 1).cpu()
    num_rows_N = torch.bincount(index.positions(best_R1)[0].flatten(), minlength=len(index))
    share_N = num_rows_N.to(lines_RL) / len(lines_RL)
    probability_N = all_scores(lines_RL, index).softmax(dim=0).mean(dim=1)
    return len(index) * (share_N * probability_N).sum()


def squared_variation(values: Tensor) -> Tensor:
    """Variance over squared mean."""
    mean = values.mean()
    return values.var(unbiased=False) / mean.square().clamp_min(torch.finfo(mean.dtype).tiny)
