"""The benchmarks themselves: their rows, their flags, and a few of them measured on a real swarm of small experts."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import dht, dht_simulation, directory, dmoe, expert_calls, latency
from benchmarks.command_line import Options
from benchmarks.local_mixture import LocalMixture
from benchmarks.mixture_step import Step
from benchmarks.projects import project_of
from benchmarks.runtime_batches import Settings
from benchmarks.simulated_gets import Scenario, simulate
from benchmarks.worker import Work
from benchmarks.workers.matmul_chain import MatmulChain
from benchmarks.workers.our_directory import OurDirectory
from benchmarks.workers.our_directory import Settings as DirectorySettings
from benchmarks.workers.our_runtime import OurRuntime
from benchmarks.workers.our_simulation import slope

FULL = Options(json=None, quick=False, seed=0, runs=5, only=())
EXPERT_CALLS = [
    ("nop-1row-forward", "hivemind", 14),
    ("nop-1row-forward", "zeromq-echo", 0.4),
    ("nop-1row-forward-backward", "hivemind", 13),
    ("nop-32callers-forward", "hivemind", 10),
    ("nop-32inflight-forward", "hivemind, 32 callers", 18),
    ("nop-2048rows-forward-curve", "hivemind", 4),
    ("nop-2048rows-forward-curve", "zeromq-echo", 0.7),
    ("nop-2048rows-forward-plain", "hivemind", 12),
    ("nop-2048rows-forward-plain", "zeromq-echo plain", 0.7),
    ("mlp1024-2048rows-forward-backward", "hivemind", 1.5),
    ("ffn1024-256rows-forward-backward", "local", 0.9),
    ("ffn1024-2048rows-forward-backward", "local", 0.9),
    ("calls-per-second-1024-experts", "the same with 1 expert", 0.8),
    ("node-16-experts-ready", "limit 3 s", 1),
    ("node-256-experts-ready", "limit 15 s", 1),
    ("node-256-experts-memory", "limit 1.5 x (weights + gradients + optimizer state) + 400 MB", 1),
]
DMOE = [
    ("dmoe-h128-b256-forward-backward", "hivemind", 100),
    ("dmoe-h128-b256-forward-backward", "local, 2 threads", 0.5),
    ("dmoe-h1024-b256-forward-backward", "local, 2 threads", 0.8),
    ("runtime-64-experts-forward", "one matmul chain of the same FLOPs at the mean rows, same TF32 setting", 0.5),
    ("runtime-64-experts-forward-backward", "the same, with one fused optimizer step per batch", 0.4),
]
DIRECTORY = [
    ("top4-of-4096-batch256-mirror", "limit 4 ms", 1),
    ("top4-of-4096-batch16-warm", "hivemind", 50),
    ("beam-search-cold-round-trips", "limit 4", 1),
    ("vanished-node-out-of-mirror", "limit 12 s", 1),
    ("killed-node-out-of-mirror", "limit 3 s", 1),
]
DHT_SIMULATION = [
    ("gets-right-10000-nodes", "limit 0.999", 1),
    ("median-round-trips-10000-nodes", "limit 3", 1),
    ("growth", "limit 0.25", 1),
    ("gets-right-20pct-hostile", "limit 0.99", 1),
]
LATENCY = [
    ("throughput-100ms-10pct-failures", "ours at 0 ms, no failures", 0.9),
    ("throughput-100ms", "model-parallel chain of equal FLOPs per row, one batch at a time", 10),
    ("throughput-100ms", "the chain with 64 batches in flight", 0),
]

DHT = [
    ("get-100", "bare kademlia", 0.7),
    ("store-100", "bare kademlia", 0.7),
    ("get-100-10pct-dead", "ours, healthy (p95)", 0.33),
    ("get-100-30pct-dead", "ours, healthy (p95)", 0.33),
    ("store-100-10pct-dead", "ours, healthy (p95)", 0.1),
    ("store-100-30pct-dead", "ours, healthy (p95)", 0.1),
    ("store-32", "hivemind", 5),
    ("declare-512-experts", "hivemind", 200),
    ("store-100", "hivemind", 5),
]


def test_expert_calls_has_its_rows_and_bars():
    rows = expert_calls.comparisons(expert_calls.Sizes(), FULL)

    assert [(row.bar.row, row.bar.reference, row.bar.bar) for row in rows] == EXPERT_CALLS


def test_dmoe_has_its_rows_and_bars():
    rows = dmoe.comparisons(dmoe.Sizes(), FULL)

    assert [(row.bar.row, row.bar.reference, row.bar.bar) for row in rows] == DMOE


def test_dht_has_its_rows_and_bars():
    rows = [row.bar for row in dht.comparisons(dht.Sizes(), FULL) if not row.bar.row.endswith("-healed")]

    assert [(bar.row, bar.reference, bar.bar) for bar in rows] == DHT


def test_latency_has_its_rows_and_bars():
    rows = latency.comparisons(latency.Sizes(), FULL)

    assert [(row.bar.row, row.bar.reference, row.bar.bar) for row in rows] == LATENCY


def test_directory_has_its_rows_and_bars():
    rows = directory.comparisons(directory.Sizes(), FULL)

    assert [(row.bar.row, row.bar.reference, row.bar.bar) for row in rows] == DIRECTORY


def test_a_trainer_chooses_and_searches_among_a_few_experts():
    settings = DirectorySettings(grid=[4, 4], num_nodes=8, dead=0.0, k_best=2, seed=1)
    worker = OurDirectory(settings)
    try:
        worker.check()
        assert worker.measure(Work(name="top4", rows=3, budget_s=0.01)) > 0
        assert 0 < worker.measure(Work(name="cold-round-trips")) <= 4
    finally:
        worker.close()


def test_dht_simulation_has_its_rows_and_bars():
    rows = dht_simulation.comparisons(dht_simulation.Sizes(), FULL)

    assert [(row.bar.row, row.bar.reference, row.bar.bar) for row in rows] == DHT_SIMULATION
    assert all(row.bar.is_rate == row.bar.row.startswith("gets-right") for row in rows)


def test_simulated_gets_are_right_in_a_few_round_trips():
    outcome = simulate(Scenario(40, 60, num_keys=10, churn_per_min=0.2, duration_s=10.0))

    assert len(outcome.round_trips) >= 50  # whoever died meanwhile does not count
    assert outcome.right == 1.0
    assert outcome.median_round_trips <= 3


def test_a_slope_is_that_of_the_line_of_least_squares():
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(0, 1), (1, 0), (2, 2), (3, 1)]) == pytest.approx(0.2)


@pytest.mark.parametrize("benchmark", [expert_calls, dmoe])
@pytest.mark.parametrize("flag", ["--runs=0", "--hidden=none", "--no-such-flag"])
def test_a_flag_that_makes_no_sense_is_refused(benchmark, flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([flag])

    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", [expert_calls, dmoe])
def test_an_unknown_row_is_refused_with_those_there_are(benchmark, capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["--only", "nothing"]) == 2

    assert "-forward-backward" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_rows_of_a_small_expert_are_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "figures.json"
    flags = ["--quick", "--hidden", "16", "--callers", "2", "--runs", "1", "--json", str(path)]

    assert expert_calls.main([*flags, "--only", "nop-1row-forward*", "nop-2callers-forward"]) == 0

    rows = {(row["row"], row["reference"]): row for row in json.loads(path.read_text())["rows"]}
    echo = rows["nop-1row-forward", "zeromq-echo"]
    assert echo["holds"] is not None
    assert echo["spread"] == [echo["ratio"], echo["ratio"]]
    rival = rows["nop-1row-forward-backward", "hivemind"]
    assert (rival["reference_value"], rival["holds"], rival["why"]) == (None, None, "left out by --quick")
    assert rival["ours"] > 0
    assert rows["nop-2callers-forward", "hivemind"]["ours"] > 1
    assert "nop-1row-forward" in capsys.readouterr().out


@pytest.mark.slow
def test_quick_rows_of_a_small_layer_are_measured(tmp_path: Path):
    path = tmp_path / "figures.json"
    sizes = ["--hidden", "8", "--batch", "16", "--grid", "2", "2", "--k-best", "2", "--nodes", "1", "--runs", "1"]

    assert dmoe.main(["--quick", *sizes, "--json", str(path), "--only", "dmoe-h8-*"]) == 0

    rows = json.loads(path.read_text())["rows"]
    assert [row["reference"] for row in rows] == ["hivemind", "local, 2 threads"]
    assert rows[1]["ratio"] > 0


@pytest.mark.slow
def test_quick_rows_of_a_small_model_far_away_are_measured(tmp_path: Path):
    path = tmp_path / "figures.json"
    sizes = ["--hidden", "8", "--layers", "1", "--grid", "2", "2", "--nodes", "1", "--rows", "8", "--in-flight", "4"]

    only = ["--only", "throughput-100ms-10pct-failures"]
    assert latency.main(["--quick", "--runs", "1", *sizes, *only, "--json", str(path)]) == 0

    (row,) = json.loads(path.read_text())["rows"]
    assert "why" not in row
    assert 0 < row["ours"] < 4 * 8 / 0.2, "a batch takes two calls of 100 ms at least, and four are in flight"
    assert row["reference_value"] > row["ours"]


def test_quick_rows_of_a_few_dht_peers_are_measured(tmp_path: Path):
    path = tmp_path / "figures.json"
    sizes = ["--nodes", "8", "--fewer-nodes", "4", "--runs", "1"]
    rows = ["get-8", "store-8", "get-8-30pct-dead", "declare-*"]

    assert dht.main(["--quick", *sizes, "--json", str(path), "--only", *rows]) == 0

    measured = {(row["row"], row["reference"]): row for row in json.loads(path.read_text())["rows"]}
    assert measured["get-8", "bare kademlia"]["ratio"] > 0
    assert measured["store-8", "bare kademlia"]["ratio"] > 0
    assert measured["get-8-30pct-dead", "ours, healthy (p95)"]["ratio"] > 0
    assert measured["declare-512-experts", "hivemind"]["ours"] > 0


def test_a_local_mixture_is_the_same_on_a_pool_of_threads():
    project = project_of("mlp", 8, (2, 3))
    torch.manual_seed(0)
    step = Step.random(12, 8)
    one, other = LocalMixture(project, 2), LocalMixture(project, 2, lambda compute, groups: map(compute, list(groups)))
    other.gate.load_state_dict(one.gate.state_dict())

    for mine, theirs in zip(step.run(one), step.run(other), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_the_runtime_without_a_network_answers_every_round():
    settings = Settings("ffn", hidden_size=8, num_experts=3, seed=0, device="cpu", tf32=False)
    threads = torch.get_num_threads()
    runtime, chain = OurRuntime(settings), MatmulChain(settings)
    try:
        runtime.check()
        for name in ("forward", "forward-backward"):
            work = Work(name=name, budget_s=0.05, warm_s=0.0)
            assert runtime.measure(work) > 0
            assert chain.measure(work) > 0
    finally:
        runtime.close()
        torch.set_num_threads(threads)
