"""What batches are expected to take."""

import math

from node_agent.runtime.costs import Costs


def test_nothing_is_expected_of_a_kind_that_was_never_computed():
    costs = Costs()
    costs.observe("ffn0", "forward", 40, 0.5)
    assert costs.expected_s("ffn0", "backward", 40) == math.inf
    assert costs.expected_s("ffn1", "forward", 40) == math.inf
    assert costs.expected_s("ffn0", "forward", 64) == math.inf


def test_sizes_of_one_power_of_two_are_one_kind():
    costs = Costs()
    costs.observe("ffn0", "forward", 40, 0.5)
    assert costs.expected_s("ffn0", "forward", 32) == costs.expected_s("ffn0", "forward", 63) == 0.5


def test_a_slow_first_batch_is_forgotten_after_ten():
    costs = Costs()
    costs.observe("ffn0", "forward", 1, 0.02)
    for _ in range(10):
        costs.observe("ffn0", "forward", 1, 0.0001)
    expected_s = costs.expected_s("ffn0", "forward", 1)
    assert expected_s < 0.001
