"""The demo's project record, its schedule, and who hosts what."""

from __future__ import annotations

from pathlib import Path

import pytest

from learning_at_home.demo.recipe import (
    GRID,
    LAYERS,
    Recipe,
    learning_rate_factor,
    project_record,
    project_toml,
    share_of_node,
)
from learning_at_home.expert_uid import Grid, UidPattern
from learning_at_home.project import ProjectRecord


@pytest.mark.parametrize("frozen", [True, False])
def test_the_toml_file_says_the_same_as_the_record(tmp_path: Path, frozen: bool):
    record = project_record(frozen_experts=frozen)
    file = tmp_path / "digits.toml"
    file.write_text(project_toml(record), "utf-8")

    assert ProjectRecord.from_toml(file) == record


def test_frozen_experts_differ_from_trained_ones_in_their_optimizer_only():
    trained, frozen = (project_record(frozen_experts=frozen) for frozen in (False, True))

    assert {layer.optimizer.name for layer in frozen.layers} == {"frozen"}
    assert [layer.grid for layer in frozen.layers] == [layer.grid for layer in trained.layers] == [GRID] * len(LAYERS)


def test_four_nodes_host_one_line_of_each_layer_each():
    assert share_of_node(0, 4) == ["ffn0.[0:1].[0:4]", "ffn1.[0:1].[0:4]"]
    assert share_of_node(3, 4) == ["ffn0.[3:4].[0:4]", "ffn1.[3:4].[0:4]"]


@pytest.mark.parametrize("num_nodes", range(1, 17))
def test_every_cell_has_exactly_one_host(num_nodes: int):
    shares = [share_of_node(node, num_nodes) for node in range(num_nodes)]
    hosted = [uid for share in shares for pattern in share for uid in UidPattern.parse(pattern).uids(Grid(GRID))]

    assert sorted(hosted) == sorted(uid for layer in LAYERS for uid in Grid(GRID).uids(layer))
    assert all(shares)


def test_the_learning_rate_falls_by_steps_or_by_time_whichever_is_further():
    recipe = Recipe(steps=100, budget_s=10.0)

    assert learning_rate_factor(0, 0.0, recipe) == 1.0
    assert learning_rate_factor(50, 0.0, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(10, 5.0, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(10, 20.0, recipe) == pytest.approx(0.0)
