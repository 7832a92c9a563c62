"""The choice of experts against brute force, on grids of one to three dimensions."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from learning_at_home.client import selection
from learning_at_home.client.selection import CellIndex, best_cells, cell_scores, lines_of, next_best_cells
from tests.learning_at_home.client.grid_problems import brute_force, problems, score


@given(problems())
def test_the_chosen_cells_equal_brute_force(problem: tuple[tuple[int, ...], Tensor, list[int], int]):
    grid, lines_RL, living, k = problem

    chosen_RK = best_cells(lines_RL, CellIndex.of(grid, living), k)

    assert chosen_RK.tolist() == [brute_force(lines, grid, living, k) for lines in lines_RL]


@pytest.mark.parametrize("stretch", [1, 2, 3, 5])
@given(problem=problems())
def test_cells_compared_by_the_best_of_their_stretch_are_chosen_alike(
    stretch: int, problem: tuple[tuple[int, ...], Tensor, list[int], int]
):
    grid, lines_RL, living, k = problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "STRETCH", stretch)
        chosen_RK = best_cells(lines_RL, CellIndex.of(grid, living), k)

    assert chosen_RK.tolist() == [brute_force(lines, grid, living, k) for lines in lines_RL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_best_of_4096_cells_with_dead_ones_and_ties_are_exact(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    lines_RL = torch.randint(-20, 20, (256, 128), generator=generator).to(dtype)  # every row has many ties
    living = (torch.rand(4096, generator=generator) > 0.1).nonzero().squeeze(1).tolist()

    chosen_RK = best_cells(lines_RL, CellIndex.of((64, 64), living), 4)

    all_RN = lines_RL[:, :64, None] + lines_RL[:, None, 64:]
    by_score = all_RN.flatten(1)[:, living].sort(dim=1, descending=True, stable=True).indices[:, :4]
    assert torch.equal(chosen_RK, torch.tensor(living)[by_score])


@given(problems())
def test_the_scores_of_cells_are_sums_over_dimensions(problem: tuple[tuple[int, ...], Tensor, list[int], int]):
    grid, lines_RL, living, _ = problem
    cells_RK = torch.tensor(living).expand(len(lines_RL), -1)

    assert cell_scores(lines_RL, grid, cells_RK).tolist() == [
        [score(lines, grid, cell) for cell in living] for lines in lines_RL
    ]


@given(problems())
def test_the_next_best_continue_where_the_best_ended(problem: tuple[tuple[int, ...], Tensor, list[int], int]):
    grid, lines_RL, living, k = problem
    index = CellIndex.of(grid, living)
    asked_RA = best_cells(lines_RL, index, k)

    cells_R = next_best_cells(lines_RL, index, asked_RA)

    for lines, cell in zip(lines_RL, cells_R.tolist(), strict=True):
        following = brute_force(lines, grid, living, k + 1)[k:]
        assert [cell] == (following or [-1])


def test_what_was_asked_and_died_since_is_no_hindrance():
    lines_RL = torch.tensor([[3.0, 2.0, 1.0, 0.0]])

    assert next_best_cells(lines_RL, CellIndex.of((4,), [1, 3]), torch.tensor([[0, 1, -1]])).tolist() == [3]
    assert next_best_cells(lines_RL, CellIndex.of((4,), []), torch.tensor([[0]])).tolist() == [-1]


def test_rows_taken_in_blocks_are_chosen_alike(monkeypatch):
    lines_RL = torch.randn(33, 12)
    index = CellIndex.of((4, 8), range(0, 32, 3))
    whole = best_cells(lines_RL, index, 4), next_best_cells(lines_RL, index, best_cells(lines_RL, index, 4))

    monkeypatch.setattr(selection, "SCORES_AT_ONCE", 50)

    blocks = best_cells(lines_RL, index, 4), next_best_cells(lines_RL, index, whole[0])
    assert [torch.equal(a, b) for a, b in zip(whole, blocks, strict=True)] == [True, True]


def test_lines_of_a_cell():
    assert lines_of((2, 3), torch.tensor([0, 5])).tolist() == [[0, 1], [2, 4]]
