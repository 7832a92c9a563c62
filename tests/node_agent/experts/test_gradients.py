"""Norms and sums of gradients."""

import math

import pytest
import torch

from node_agent.experts.gradients import Gradients, clip_scale, in_own_memory, total_norm

ROWS = torch.zeros(1, 2)


def test_a_norm_is_torchs_own():
    gradients = [torch.randn(3, 4), None, torch.randn(5)]

    parameters = [torch.nn.Parameter(g) for g in gradients if g is not None]
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    assert total_norm(gradients) == float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    assert total_norm([None]) == 0.0


@pytest.mark.parametrize("dtype,large", [(torch.float32, 1e30), (torch.float64, 1e300)])
def test_numbers_whose_squares_overflow_have_a_norm(dtype, large):
    assert total_norm([torch.full((4,), large, dtype=dtype), torch.zeros(2, dtype=dtype)]) == pytest.approx(2 * large)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_numbers_that_are_not_finite_have_none(spoilt):
    assert not math.isfinite(total_norm([torch.tensor([1.0, spoilt]), torch.ones(3)]))
    assert not math.isfinite(total_norm([torch.full((2,), spoilt)]))


@pytest.mark.parametrize(
    "norm,clip_norm,scale", [(2.0, None, 1.0), (0.5, 1.0, 1.0), (4.0, 1.0, 0.25), (0.0, 1.0, 1.0), (1e30, 1.0, 1e-30)]
)
def test_a_gradient_is_scaled_down_to_the_norm_and_never_up(norm, clip_norm, scale):
    assert clip_scale(norm, clip_norm) == pytest.approx(scale, rel=1e-5)


def test_a_sum_has_what_either_has():
    one = Gradients(ROWS, (torch.ones(2), None, torch.ones(1), None), 1.5)
    other = Gradients(ROWS + 1, (torch.ones(2), torch.ones(3), None, None), 2.0)

    total = one.plus(other)

    assert [None if g is None else g.tolist() for g in total.of_parameters] == [[2.0, 2.0], [1.0] * 3, [1.0], None]
    assert total.norm == 3.5
    assert total.of_rows is ROWS


def test_every_gradient_gets_memory_of_its_own_where_it_shared_it():
    matrix, alone, foreign = torch.randn(3, 4), torch.randn(2), torch.randn(5)

    owned = in_own_memory([matrix, matrix.t(), matrix.view(12), alone, None, foreign], foreign)

    pointers = [gradient.data_ptr() for gradient in owned if gradient is not None]
    assert len({*pointers, foreign.data_ptr()}) == 6
    assert all(gradient is None or gradient.is_contiguous() for gradient in owned)
    assert owned[0] is matrix
    assert owned[3] is alone
    for gradient, given in zip(owned, [matrix, matrix.t(), matrix.view(12), alone, None, foreign], strict=True):
        assert (gradient is None and given is None) or torch.equal(gradient, given)  # type: ignore[arg-type]
