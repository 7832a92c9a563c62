"""Layers of random grids with dead and failing cells against a local mixture, row by row, in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import learning_at_home as lah
from learning_at_home.errors import ExpertFailed
from learning_at_home.expert_uid import ExpertUid
from node_agent.testing.local_swarm import LocalSwarm
from tests.learning_at_home.client.grid_problems import brute_force
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer


@dataclass(frozen=True)
class Case:
    """`failing`: cells that live and refuse every call."""

    grid: tuple[int, ...]
    living: tuple[int, ...]
    failing: frozenset[int]
    k_best: int
    k_min: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    grid = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    num_cells = torch.Size(grid).numel()
    living = sorted(draw(st.sets(st.integers(0, num_cells - 1), min_size=1)))
    failing = frozenset(cell for cell in living if draw(st.integers(0, 2)) == 0)
    k_best = draw(st.integers(1, 4))
    k_min = draw(st.integers(1, min(k_best, len(living))))  # with fewer that live, a layer would wait for more
    return Case(grid, tuple(living), failing, k_best, k_min, draw(st.integers(0, 1000)))


def factor(cell: int) -> float:
    """The expert of a cell multiplies by it."""
    return 1.0 + 0.5 * cell


def swarm_of(case: Case) -> SmallSwarm:
    """Two nodes that share the living cells."""
    swarm = SmallSwarm(layer(case.grid, optimizer=FROZEN, deadline_s=20.0))

    def behaviour(work, tensors):
        cell = swarm.spec.cells.cell(ExpertUid.parse(work.uid))
        return ExpertFailed("out of luck") if cell in case.failing else factor(cell) * tensors[-1]

    for cells in (case.living[::2], case.living[1::2]):
        if cells:
            swarm.add_wilful(cells, behaviour)
    return swarm


def answering(case: Case, lines: Tensor) -> list[int]:
    """Who answers for a row: of its k best those that do, then the next best, one by one, up to k_min."""
    ranked = brute_force(lines, case.grid, list(case.living), len(case.living))
    got = [cell for cell in ranked[: case.k_best] if cell not in case.failing]
    for cell in ranked[case.k_best :]:
        if len(got) >= case.k_min:
            break
        if cell not in case.failing:
            got.append(cell)
    return got if len(got) >= case.k_min else []


def scores_of(case: Case, lines: Tensor, cells: list[int]) -> Tensor:
    """Differentiable, without any trick."""
    picks = []
    for cell in cells:
        rest, end, total = cell, len(lines), lines.new_zeros(())
        for size in reversed(case.grid):
            rest, place = divmod(rest, size)
            total = total + lines[end - size + place]
            end -= size
        picks.append(total)
    return torch.stack(picks)


def check(swarm: SmallSwarm, module: lah.DMoE, gate: torch.nn.Linear, row, case: Case) -> None:
    """The layer's output and gradients against `row(x, lines, answering cells)`, one row at a time."""
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    x_local, head = x.detach().clone().requires_grad_(), torch.randn(5, 6, dtype=torch.float64)
    y = module(x)
    (y * head).sum().backward()
    lines = gate(x_local)
    who = [answering(case, lines[number].detach()) for number in range(5)]
    y_local = torch.stack([row(x_local[number], lines[number], who[number]) for number in range(5)])
    (y_local * head).sum().backward()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    torch.testing.assert_close(module.gate.lines.weight.grad, gate.weight.grad)
    assert module.passed.tolist() == [not cells for cells in who]
    assert swarm.swarm.stats().passed_rows == sum(not cells for cells in who)


def gate_like(module: lah.DMoE) -> torch.nn.Linear:
    copied = torch.nn.Linear(6, module.gate.lines.out_features, dtype=torch.float64)
    copied.load_state_dict(module.gate.lines.state_dict())
    return copied


few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(cases())
def test_a_layer_with_failing_and_dead_cells_equals_a_local_mixture_with_the_identity_where_too_few_answer(case: Case):
    torch.manual_seed(case.seed)
    swarm = swarm_of(case)
    try:
        module = lah.DMoE(swarm.swarm, "ffn0", case.k_best, k_min=case.k_min, on_missing="pass")

        def row(x: Tensor, lines: Tensor, cells: list[int]) -> Tensor:
            if not cells:
                return x + 0 * lines.sum()
            weights = scores_of(case, lines, cells).softmax(0)
            return sum((w * factor(cell) * x for w, cell in zip(weights, cells, strict=True)), torch.zeros_like(x))

        check(swarm, module, gate_like(module), row, case)
    finally:
        swarm.close()


@few
@given(cases())
def test_a_switch_layer_with_failing_and_dead_cells_equals_a_local_one(case: Case):
    torch.manual_seed(case.seed)
    case = Case(case.grid, case.living, case.failing, 1, 1, case.seed)
    swarm = swarm_of(case)
    try:
        module = lah.SwitchDMoE(swarm.swarm, "ffn0", jitter=0.0, capacity_factor=None, on_missing="pass")

        def row(x: Tensor, lines: Tensor, cells: list[int]) -> Tensor:
            if not cells:
                return x + 0 * lines.sum()
            p = scores_of(case, lines, list(case.living)).softmax(0)[case.living.index(cells[0])]
            return x + p * (factor(cells[0]) * x - x)

        check(swarm, module, gate_like(module), row, case)
    finally:
        swarm.close()


@pytest.mark.slow
def test_gradcheck_passes_over_real_nodes_with_frozen_experts():
    project = lah.ProjectRecord(id="grads", layers=(layer((2, 2), hidden_size=3, optimizer=FROZEN),))
    with (
        LocalSwarm(project, num_nodes=2, in_process=True) as local,
        lah.Swarm.connect(bootstrap=local.bootstrap, project=project) as swarm,
    ):
        swarm.wait_until_alive()
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(swarm.expert("ffn0.1.0"), (x,))
        for module in (lah.DMoE(swarm, "ffn0", 2), lah.SwitchDMoE(swarm, "ffn0", jitter=0.0, overflow="pass")):
            parameters = (module.gate.lines.weight, module.gate.lines.bias)
            assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *parameters))  # noqa: B023
            torch.testing.assert_close(copy.deepcopy(module.eval())(x), module(x))
