"""Which experts are computed as one product, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.experts.portions import COPY_ROWS, Bounds, Portion, plan

ROOMY = Bounds(experts=1000, rows=1_000_000, launch_rows=100)


@pytest.mark.parametrize(
    "num_rows,bounds,expected",
    [
        ({}, ROOMY, []),
        ({3: 5}, ROOMY, [Portion((3,), 5)]),
        ({0: 5, 1: 7, 2: 6}, ROOMY, [Portion((0, 1, 2), 7)]),
        ({0: 8, 2: 8}, ROOMY, [Portion((0, 1, 2), 8)]),  # a neighbour without work costs less than a copy of weights
        ({0: 8, 39: 8}, ROOMY, [Portion((0, 39), 8)]),  # many cost more
        (  # two sizes far apart, each side by side: two products
            {0: 2, 1: 2, 2: 900, 3: 900},
            ROOMY,
            [Portion((0, 1), 2), Portion((2, 3), 900)],
        ),
        (  # but where a product is started in the time of many rows, one
            {0: 2, 1: 2, 2: 900, 3: 900},
            Bounds(1000, 1_000_000, launch_rows=10_000),
            [Portion((0, 1, 2, 3), 900)],
        ),
        ({0: 5, 1: 7, 2: 6}, Bounds(2, 100), [Portion((0, 1), 7), Portion((2,), 6)]),
        ({0: 5, 1: 7, 2: 6}, Bounds(9, 14), [Portion((0, 1), 7), Portion((2,), 6)]),
        ({0: 50}, Bounds(9, 14), [Portion((0,), 50)]),  # one expert always fits
        ({0: 5, 3: 5}, Bounds(2, 100, launch_rows=300), [Portion((0, 3), 5)]),  # rather than in two runs
    ],
)
def test_portions_are_the_cheapest_that_fit(num_rows, bounds, expected):
    assert plan(num_rows, bounds) == expected


def test_pieces_without_work_are_left_out():
    assert plan({0: 5, 5: 5}, Bounds(2, 100)) == [Portion((0, 1), 5), Portion((4, 5), 5)]


@given(st.dictionaries(st.integers(0, 60), st.integers(1, 4096), min_size=1), st.floats(0, 1e4))
def test_padding_costs_no_more_than_the_rows_a_copy_of_weights_and_a_launch_per_power_of_two(num_rows, launch_rows):
    portions = plan(num_rows, Bounds(1000, 10_000_000, launch_rows))

    work = sum(num_rows.values())
    cost = sum(portion.cost_rows(launch_rows) for portion in portions)
    assert cost <= 2 * work + COPY_ROWS * len(num_rows) + 13 * launch_rows
    covered = [position for portion in portions for position in portion.positions if position in num_rows]
    assert sorted(covered) == sorted(num_rows)
    for portion in portions:
        assert all(num_rows.get(position, 0) <= portion.longest for position in portion.positions)
