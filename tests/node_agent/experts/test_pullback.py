"""The gradient of an output, taken back to what went in."""

import pytest
import torch
from torch import nn

from node_agent.experts.pullback import pull_back, pull_back_by_product


def test_both_ways_are_torchs_own():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4))
    rows, gradient = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    inputs = [rows, *network.parameters()]

    expected = torch.autograd.grad(network(rows), inputs, gradient)

    for way in (pull_back, pull_back_by_product):
        found = way(network(rows), gradient, inputs)
        assert all(ours is not None and torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_what_the_output_does_not_depend_on_has_no_gradient():
    rows, other = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)

    of_rows, of_other = pull_back(rows * 2, torch.ones(2, 3), [rows, other])

    assert of_rows is not None
    assert torch.equal(of_rows, torch.full((2, 3), 2.0))
    assert of_other is None
    assert pull_back(torch.ones(2, 3), torch.ones(2, 3), [rows, other]) == (None, None)


def test_a_gradient_of_another_shape_is_refused():
    rows = torch.randn(2, 3, requires_grad=True)

    with pytest.raises(ValueError, match=r"the output is \(2, 3\), its gradient \(2, 4\)"):
        pull_back(rows * 2, torch.ones(2, 4), [rows])
