"""What counts as finite: every number, not their sum."""

import math

import pytest
import torch

from learning_at_home.tensors.finite import is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "values,finite",
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # their sum overflows float32
        ([math.inf, -math.inf], False),
        ([1.0, math.nan], False),
        ([], True),
    ],
)
def test_finite_means_every_number_is(values, finite, dtype):
    assert is_finite(torch.tensor(values, dtype=dtype)) is finite
