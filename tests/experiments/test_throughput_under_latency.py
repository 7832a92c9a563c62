"""The experiment's mechanics on a tiny size: what is measured takes minutes and a machine of its own."""

import json
import math

import pytest

from benchmarks.distant_training import Models, Way
from experiments.throughput_under_latency import main

TINY = [
    *("--architectures", "mlp", "--hidden-size", "8", "--layers", "2", "--grid", "2", "2", "--nodes", "1"),
    *("--rows", "6", "--in-flight", "3", "--waves", "1", "--chain-batches", "1", "--direction", "backward"),
    *("--delays-ms", "0", "60", "--no-regions", "--mbit", "1", "--mbit-delay-ms", "0", "--compression", "none"),
]


@pytest.mark.slow
def test_a_tiny_run_delays_loses_counts_and_writes(tmp_path, capsys):
    file, plot = tmp_path / "found.json", tmp_path / "speed.svg"

    assert main([*TINY, "--lost", "0", "0.2", "--grace-s", "0.1", "--json", str(file), "--plot", str(plot)]) == 0

    runs = json.loads(file.read_text())["runs"]
    by_name = {(run["name"], run["way"]["delay_s"]): run for run in runs if run["way"]["bytes_per_s"] is None}
    assert len(runs) == len(by_name) + 1 == 9
    for (name, delay_s), run in by_name.items():
        calls_in_a_row = 2 * 2  # layers, forward and backward
        assert run["batch_s"] >= calls_in_a_row * delay_s, name
        assert run["batches"] == (1 if run["in_flight"] == 1 else 3)
        assert run["rows_per_s"] * run["seconds"] <= 6 * run["batches"] + 1e-6
        lost = run["lost_requests"] + run["lost_replies"]
        assert (lost > 0) == (run["way"]["lost"] > 0), name
        assert lost < run["calls"] / 2
    assert runs[-1]["way"]["bytes_per_s"] == 125_000
    assert "20% lost" in (tmp_path / "speed-mlp-backward.svg").read_text()
    assert "chain, one batch" in capsys.readouterr().out


def test_a_stage_of_the_chain_has_the_products_of_the_experts_that_a_row_goes_to():
    assert Models(hidden_size=256, k_best=4).chain_hidden_size == 512
    with pytest.raises(ValueError, match="square"):
        Models(k_best=3).project()


def test_both_ways_together_are_a_call():
    line = Way(delay_s=0.1, jitter_s=0.03).line
    assert 2 * line.delay_s == 0.1
    assert math.hypot(line.jitter_s, line.jitter_s) == pytest.approx(0.03)
