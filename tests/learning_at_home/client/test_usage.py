"""How usage is counted, and when a gate counts as collapsed. As tables, then through a layer."""

import logging
import math

import numpy as np
import pytest
import torch

import learning_at_home as lah
from learning_at_home.client import usage as usage_module
from learning_at_home.client.usage import MIN_BATCHES, WARN_EVERY_S, WINDOW_BATCHES, UsageMeter
from learning_at_home.expert_uid import Grid
from tests.learning_at_home.client.small_swarm import FROZEN, layer, twice

ALL = range(8)


def meter_of(cells: list[list[int]], batches: int, grid: tuple[int, ...] = (8,)) -> UsageMeter:
    meter = UsageMeter("ffn0", Grid(grid))
    for _ in range(batches):
        meter.count(np.array(cells))
    return meter


def test_shares_entropy_and_unused_experts_of_an_even_and_of_an_uneven_use():
    even = meter_of([[cell] for cell in ALL], 5).usage(ALL)
    assert list(even.shares.values()) == pytest.approx([1 / 8] * 8)
    assert even.entropy == pytest.approx(math.log(8))
    assert even.entropy_share == pytest.approx(1.0)
    assert even.effective_experts == pytest.approx(8.0)
    assert even.experts_per_row == pytest.approx(1.0)
    assert (even.batches, even.num_unused) == (5, 0)

    uneven = meter_of([[0, 1], [0, 1], [0, 2], [-1, -1]], 5).usage(ALL)
    assert [round(share, 6) for share in uneven.shares.values()] == [0.5, round(1 / 3, 6), round(1 / 6, 6), *[0.0] * 5]
    assert uneven.entropy == pytest.approx(0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6)
    assert uneven.experts_per_row == pytest.approx(2.0), "a row that passed through has none"
    assert uneven.num_unused == 5


def test_only_experts_that_live_now_count():
    usage = meter_of([[0], [1], [2], [2]], 3).usage([0, 1, 5])

    assert [str(uid) for uid in usage.shares] == ["ffn0.0", "ffn0.1", "ffn0.5"]
    assert list(usage.shares.values()) == pytest.approx([0.5, 0.5, 0.0])


def test_what_is_long_ago_fades_and_is_unused_after_the_window():
    meter = meter_of([[0]], 50)
    for _ in range(WINDOW_BATCHES - 1):
        meter.count(np.array([[1]]))
    assert meter.usage(ALL).num_unused == 6
    meter.count(np.array([[1]]))

    usage = meter.usage(ALL)

    assert usage.num_unused == 7
    assert 0.1 < usage.shares[lah.ExpertUid.parse("ffn0.0")] < 0.25


def test_counting_in_new_units_changes_nothing(monkeypatch):
    expected = meter_of([[0, 1], [0, 2]], 150).usage(ALL)
    monkeypatch.setattr(usage_module, "MAX_UNIT", 1.5)

    usage = meter_of([[0, 1], [0, 2]], 150).usage(ALL)

    assert list(usage.shares.values()) == pytest.approx(list(expected.shares.values()))
    assert usage.experts_per_row == pytest.approx(2.0)


def test_of_a_layer_that_nobody_used_or_that_nobody_serves():
    unused = UsageMeter("ffn0", Grid((8,))).usage(ALL)
    assert (unused.entropy, unused.num_unused, unused.has_collapsed) == (0.0, 8, False)
    nobody = meter_of([[0]], 200).usage([])
    assert (nobody.shares, nobody.has_collapsed) == ({}, False)


@pytest.mark.parametrize(
    "cells, batches, collapsed",
    [
        ([[0]] * 20, MIN_BATCHES, True),
        ([[0]] * 20, MIN_BATCHES - 1, False),  # too early to tell
        ([[0]] * 19 + [[1]], MIN_BATCHES, True),  # effectively 1.22 of 8 experts, and 1.7 would do
        ([[0]] * 15 + [[1]] * 5, MIN_BATCHES, False),
        ([[0, 1, 2, 3]], MIN_BATCHES, True),  # a row takes four, and all take the same
        ([[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5, 3]], MIN_BATCHES, False),
        ([[0, 1, 2, 3, 4, 5, 6, 7]], MIN_BATCHES, False),  # every row takes every expert: there is no choice
    ],
)
def test_a_gate_has_collapsed_when_all_rows_use_hardly_more_experts_than_one_needs(cells, batches, collapsed):
    assert meter_of(cells, batches).usage(ALL).has_collapsed is collapsed


def test_a_collapse_is_told_once_and_again_after_a_while_with_what_to_do(caplog):
    meter = meter_of([[3]] * 4, MIN_BATCHES)

    assert meter.warn(ALL, now=0.0)
    assert not meter.warn(ALL, now=WARN_EVERY_S - 1)
    assert meter.warn(ALL, now=WARN_EVERY_S)

    assert len(caplog.records) == 2
    assert caplog.records[0].levelno == logging.WARNING
    for part in ("layer ffn0", "1.0 of 8 living experts", "7 got nothing", "entropy 0.00, 0 %", "balance_loss()"):
        assert part in caplog.text


def test_a_layer_counts_training_and_warns_of_its_collapse(small_swarm, caplog):
    swarm = small_swarm(layer((4,), optimizer=FROZEN))
    swarm.add_wilful([0, 1, 2], twice)
    dmoe = lah.DMoE(swarm.swarm, "ffn0", 1)
    with torch.no_grad():
        dmoe.gate.lines.weight.zero_()
        dmoe.gate.lines.bias[1] = 5.0
    x = torch.randn(4, 6, dtype=torch.float64)

    with torch.no_grad():
        dmoe(x)
    assert dmoe.usage().batches == 0
    for _ in range(MIN_BATCHES):
        dmoe(x)

    usage = dmoe.usage()
    assert {str(uid): share for uid, share in usage.shares.items()} == {"ffn0.0": 0.0, "ffn0.1": 1.0, "ffn0.2": 0.0}
    assert usage.has_collapsed
    assert [record.message.split(":")[0] for record in caplog.records] == ["layer ffn0"]
