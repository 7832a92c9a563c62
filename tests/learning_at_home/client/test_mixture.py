"""The losses against their formulas in the papers, written out."""

import math

import pytest
import torch
from torch import Tensor

from learning_at_home.client.mixture import load_loss, probabilities, squared_variation, switch_loss
from learning_at_home.client.selection import CellIndex, cell_scores

GRID = (3, 4)
LIVING = [0, 2, 3, 5, 8, 11]


def scores_of(lines: Tensor) -> Tensor:
    return cell_scores(lines, GRID, torch.tensor(LIVING).expand(len(lines), -1))


def lines(rows: int = 6) -> Tensor:
    return torch.randn(rows, sum(GRID), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_load_is_the_sum_of_each_rows_probability_to_choose_the_cell(k: int):
    clean, deviation = lines().requires_grad_(), (lines().abs() + 0.1).requires_grad_()
    noisy = clean + torch.randn_like(clean) * deviation

    load = []
    for place in range(len(LIVING)):
        total = clean.new_zeros(())
        for row in range(len(clean)):
            noisy_scores = scores_of(noisy)[row]
            others = torch.cat([noisy_scores[:place], noisy_scores[place + 1 :]]).sort(descending=True).values
            std = scores_of(deviation.square())[row, place].sqrt()
            total = total + 0.5 * (1 + torch.erf((scores_of(clean)[row, place] - others[k - 1]) / std / math.sqrt(2)))
        load.append(total)
    expected = squared_variation(torch.stack(load))
    loss = load_loss(noisy, clean, deviation, CellIndex.of(GRID, LIVING), k)

    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, [clean, deviation], retain_graph=True),
        torch.autograd.grad(expected, [clean, deviation]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_the_load_of_cells_that_every_row_takes_is_balanced():
    clean = lines().requires_grad_()

    loss = load_loss(clean, clean, torch.ones_like(clean), CellIndex.of(GRID, LIVING), len(LIVING))

    assert loss == 0
    loss.backward()
    assert clean.grad is not None


def test_the_switch_loss_is_the_papers():
    scores = lines().requires_grad_()

    all_p = scores_of(scores).softmax(dim=1)
    best = all_p.argmax(dim=1).tolist()
    shares = torch.tensor([best.count(place) / len(best) for place in range(len(LIVING))], dtype=torch.float64)
    expected = len(LIVING) * (shares * all_p.mean(dim=0)).sum()
    loss = switch_loss(scores, CellIndex.of(GRID, LIVING))

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, scores, retain_graph=True), torch.autograd.grad(expected, scores)
    )


def test_the_switch_loss_of_an_even_gate_is_one_and_of_a_collapsed_one_the_number_of_cells():
    index = CellIndex.of((4,), [0, 1, 2, 3])

    even = switch_loss(torch.eye(4) * 1e-3, index)
    collapsed = switch_loss(torch.tensor([[100.0, 0.0, 0.0, 0.0]] * 5), index)

    assert even == pytest.approx(1.0, abs=1e-3)
    assert collapsed == pytest.approx(4.0)


def test_probabilities_are_those_of_a_softmax_over_all_living_cells():
    scores = lines().requires_grad_()
    cells = torch.tensor([[5], [0], [-1], [11], [2], [3]])

    got = probabilities(scores, CellIndex.of(GRID, LIVING), cells)

    places = [[LIVING.index(cell)] if cell >= 0 else [0] for cell in cells.flatten().tolist()]
    expected = scores_of(scores).softmax(dim=1).gather(1, torch.tensor(places)) * (cells >= 0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), scores, retain_graph=True), torch.autograd.grad(expected.sum(), scores)
    )


def test_a_cell_that_came_to_life_since_counts_among_the_living():
    scores = lines(2)

    got = probabilities(scores, CellIndex.of(GRID, LIVING), torch.tensor([[7], [0]]))

    with_seven = cell_scores(scores, GRID, torch.tensor([*LIVING, 7]).expand(2, -1)).softmax(dim=1)
    assert got[0, 0] == pytest.approx(float(with_seven[0, -1]))
    assert got[1, 0] == pytest.approx(float(scores_of(scores).softmax(dim=1)[1, 0]))
