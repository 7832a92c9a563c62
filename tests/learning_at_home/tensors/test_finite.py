"""What counts as finite: every number, not their sum."""

import math

import pytest
import torch

from learning_at_home.tensors.finite import each_is_finite, is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "values,finite",
    [
        ([1.0, -2.0], True),
        ([6e4, 6e4], True),  # their sum overflows float16
        ([math.inf, -math.inf], False),
        ([1.0, math.nan], False),
        ([], True),
    ],
)
def test_finite_means_every_number_is(values, finite, dtype):
    assert is_finite(torch.tensor(values, dtype=dtype)) is finite
    assert each_is_finite(torch.tensor(values, dtype=dtype)) is finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_largest_numbers_are_finite_though_their_sum_is_not(dtype):
    assert is_finite(torch.full((3, 1000), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("position", [0, 511, 1023])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_number_is_found_in_any_layout(wrong, position):
    tensor = torch.ones(64, 16)
    tensor.view(-1)[position] = wrong
    assert not is_finite(tensor)
    assert not is_finite(tensor.t())
    assert not each_is_finite(tensor.t())
