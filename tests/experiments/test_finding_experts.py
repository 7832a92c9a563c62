"""The search for experts, tiny: real nodes in a simulated network, whose delays are counted; files are written."""

import json

import pytest

from experiments.finding_experts import THEIRS_S, main
from experiments.simulated_searches import Scene, best_cells_of, simulate


@pytest.mark.slow
def test_a_tiny_search_counts_its_round_trips_and_writes_its_files(tmp_path, capsys):
    file, plot = tmp_path / "found.json", tmp_path / "found.svg"
    size = ["--nodes", "24", "--hosts", "10", "--trainers", "2", "--others", "2"]

    assert main([*size, "--json", str(file), "--plot", str(plot)]) == 0

    found = json.loads(file.read_text())
    assert found["theirs_s"] == {str(nodes): seconds for nodes, seconds in THEIRS_S.items()}
    (one,) = found["sizes"]
    assert one["scene"]["hosts"] == one["searches"]["held"] == 10
    searches = one["searches"]["searches"]
    assert [search["kind"] for search in searches].count("other") == 4
    cold = [search for search in searches if search["kind"] == "cold"]
    assert [search["asked"] for search in cold] == [True, True]
    assert all(search["round_trips"] >= 1 for search in cold)
    assert all(search["asked"] is False for search in searches if search["kind"] == "same")
    assert one["mirror"]["right"] is True
    assert one["mirror"]["seconds"] > 0
    assert "the paper (from memory)" in plot.read_text()
    assert "24 nodes, 10 of 10 hosts announced" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_takes_twice_as_long_over_twice_the_distance():
    near, far = (simulate(Scene(12, 6, trainers=1, others=0, one_way_s=one_way_s)) for one_way_s in (0.05, 0.1))

    (near_cold,), (far_cold,) = near.of_kind("cold"), far.of_kind("cold")
    assert near_cold.round_trips == pytest.approx(round(near_cold.round_trips))  # nothing but the network takes time
    assert far_cold.seconds == pytest.approx(2 * near_cold.seconds)
    assert far.join_seconds[0] >= 2 * near.join_seconds[0] - 1e-6


def test_a_scene_has_a_cell_for_every_host():
    for hosts in (1, 4, 5, 100):
        scene = Scene(nodes=100, hosts=hosts)
        assert len(set(scene.cells)) == hosts
        assert max(scene.cells) < scene.side**2 < hosts + 2 * scene.side
        assert [claim.prefix for claim in scene.announcement(scene.cells[0]).claims] == ["ffn0"]


def test_the_best_cells_are_those_of_the_highest_sums():
    lines = [0.0, 1.0, 0.0, 10.0]  # a grid of 2 x 2: rows, then columns

    assert best_cells_of(lines, [0, 1, 2, 3], 2, 2) == [3, 1]
    assert best_cells_of(lines, [0, 1, 2], 2, 2) == [1, 2]
