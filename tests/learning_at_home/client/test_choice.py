"""The choice under a layer's options against brute force: penalties, lines left out, room."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learning_at_home.client.choice import Choice
from learning_at_home.client.selection import CellIndex, lines_of
from learning_at_home.directory.directory import LayerView
from tests.learning_at_home.client.grid_problems import brute_force, problems, score

VIEW = LayerView("ffn0", 1, (), 0, None)  # only passed on, to what is made up here
Problem = tuple[tuple[int, ...], Tensor, list[int], int]


def of_cells(figures: dict[int, float], dtype: torch.dtype = torch.float64):
    """A figure per cell, as a choice asks for it."""
    return lambda view, index: torch.tensor([figures[cell] for cell in index.cells_N.tolist()], dtype=dtype)


@st.composite
def with_penalties(draw: st.DrawFn) -> tuple[Problem, dict[int, float]]:
    problem = draw(problems())
    return problem, {cell: draw(st.integers(0, 6)) / 2 for cell in problem[2]}


@given(with_penalties())
def test_with_penalties_the_choice_and_the_next_best_equal_brute_force(case: tuple[Problem, dict[int, float]]):
    (grid, lines_RL, living, k), penalty = case
    index = CellIndex.of(grid, living)
    choice = Choice(lines_RL, k, penalty=of_cells(penalty))

    chosen_RK = choice.best(VIEW, index)
    next_R = choice.next_best(VIEW, index, torch.arange(len(lines_RL)).numpy(), chosen_RK)

    for lines, chosen, following in zip(lines_RL, chosen_RK.tolist(), next_R.tolist(), strict=True):
        expected = brute_force(lines, grid, living, k + 1, penalty)
        assert chosen == expected[:k]
        assert [following] == (expected[k:] or [-1])


@given(problems(), st.randoms(use_true_random=False))
def test_cells_on_lines_that_are_left_out_come_last(problem: Problem, random):
    grid, lines_RL, living, k = problem
    index = CellIndex.of(grid, living)
    dropped = [random.random() < 0.4 for _ in range(sum(grid))]
    choice = Choice(lines_RL, k, dropped_L=torch.tensor(dropped))
    on_lines = dict(zip(living, lines_of(grid, torch.tensor(living)).T.tolist(), strict=True))
    kept = [cell for cell in living if not any(dropped[line] for line in on_lines[cell])]
    if len(kept) < min(k, len(living)):
        kept = living

    chosen_RK = choice.best(VIEW, index)
    next_R = choice.next_best(VIEW, index, torch.arange(len(lines_RL)).numpy(), chosen_RK)

    for lines, chosen, following in zip(lines_RL, chosen_RK.tolist(), next_R.tolist(), strict=True):
        assert chosen == brute_force(lines, grid, kept, k)
        rest = [cell for cell in kept if cell not in chosen] or [cell for cell in living if cell not in chosen]
        assert [following] == (brute_force(lines, grid, rest, 1) or [-1])


def by_turns(
    lines_RL: Tensor, grid: tuple[int, ...], living: list[int], room: dict[int, int], max_turns: int
) -> list[int]:
    """Capacity, row by row: every row asks for its best with room; of those that ask the most certain ones get it."""
    scores = {(row, cell): score(lines, grid, cell) for row, lines in enumerate(lines_RL) for cell in living}
    certain = {
        row: torch.tensor([scores[row, cell] for cell in living], dtype=lines_RL.dtype).log_softmax(0).tolist()
        for row in range(len(lines_RL))
    }
    room, given = dict(room), [-1] * len(lines_RL)
    for _ in range(max_turns):
        asking: dict[int, list[int]] = {}
        for row in range(len(lines_RL)):
            open_cells = [cell for cell in living if room[cell] > 0]
            if given[row] < 0 and open_cells:
                best = max(open_cells, key=lambda cell: (certain[row][living.index(cell)], -cell))
                asking.setdefault(best, []).append(row)
        for cell, rows in asking.items():
            place = living.index(cell)
            ranked = sorted(rows, key=lambda row: (-certain[row][place], row))
            for row in ranked[: room[cell]]:
                given[row] = cell
            room[cell] -= min(room[cell], len(rows))
    return given


@pytest.mark.parametrize("overflow", ["next_best", "pass"])
@given(problem=problems(max_rows=9), random=st.randoms(use_true_random=False))
def test_rows_over_a_cells_room_go_to_the_next_best_or_nowhere(overflow, problem: Problem, random):
    grid, lines_RL, living, _ = problem
    lines_RL = lines_RL + 0.37 * torch.arange(lines_RL.numel(), dtype=lines_RL.dtype).view_as(lines_RL).sin()
    room = {cell: random.randint(0, 3) for cell in living}
    choice = Choice(lines_RL, 1, room=of_cells(dict(room), torch.int64), overflow=overflow)

    given_R = choice.best(VIEW, CellIndex.of(grid, living)).squeeze(1).tolist()

    assert given_R == by_turns(lines_RL, grid, living, room, 1 if overflow == "pass" else len(living))
    assert all(given_R.count(cell) <= room[cell] for cell in living)


def test_of_rows_that_score_alike_the_first_get_the_room():
    choice = Choice(torch.zeros(5, 3), 1, room=of_cells({0: 2, 1: 2, 2: 0}, torch.int64))

    assert choice.best(VIEW, CellIndex.of((3,), [0, 1, 2])).squeeze(1).tolist() == [0, 0, 1, 1, -1]
