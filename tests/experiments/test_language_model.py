"""The language model's mechanics on a tiny size: real nodes, files that are written, nodes that are killed."""

import json
import time
from pathlib import Path

import pytest
import torch

from experiments import language_training
from experiments.byte_transformer import ByteTransformer, bits_per_byte, dense_block, sample, windows
from experiments.churning_nodes import ChurningNodes
from experiments.language_model import main
from experiments.language_training import Settings, build, expert_parameters
from experiments.text_bytes import standard_library, wikitext
from node_agent.experts.architectures import build_checked, count_parameters, flop_per_row

TINY = ["--width", "16", "--heads", "2", "--context", "8", "--sequences", "2", "--grid", "2", "2", "--k-best", "2"]
FEW = ["--batches", "4", "--every", "2", "--warmup", "2", "--nodes", "4", "--in-process", "--sample-bytes", "5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wiki.train.tokens").write_text(" = A title = \n\n" + "the experts of the swarm . " * 40)
    (tmp_path / "wiki.valid.tokens").write_text("the unseen experts of the swarm . " * 5)
    return tmp_path


@pytest.mark.slow
def test_a_tiny_training_of_all_models_counts_and_writes_its_files(folder, capsys):
    file, plot = folder / "found.json", folder / "loss.svg"

    assert main([*TINY, *FEW, "--in-flight", "3", "--text", str(folder), "--json", str(file)]) == 0

    runs = json.loads(file.read_text())["runs"]
    assert [run["model"] for run in runs] == ["dmoe", "dense-compute", "dense-parameters"]
    for run in runs:
        assert [point["batches"] for point in run["points"]] == [2, 4]
        assert 0 < run["staleness"] <= 2
        assert run["text"].startswith("def ")
    # Each of 4 batches has 2 layers forward and backward, of 2 experts at least; measuring and writing only forward.
    assert runs[0]["lost"]["calls"] >= 4 * 2 * 2 * 2
    assert runs[0]["expert_parameters"] > 0
    assert runs[1]["lost"]["calls"] == 0

    assert main(["--models", "--add", str(file), "--text", str(folder), "--plot", str(plot)]) == 0
    for axis in ("bytes", "seconds"):
        assert (folder / f"loss-{axis}.svg").read_text().count("<polyline") == 3
    assert "dense-parameters, 3 in flight writes:" in capsys.readouterr().out


@pytest.mark.slow
def test_nodes_are_killed_while_it_trains(folder, monkeypatch):
    file = folder / "found.json"
    churns: list[ChurningNodes] = []

    def churning(*args, **settings):
        churns.append(ChurningNodes(*args, **settings))
        return churns[-1]

    def batches_until_one_is_killed(text, settings, seed):
        deadline = time.monotonic() + 20
        while not churns[-1].kills and time.monotonic() < deadline:
            yield windows(text, torch.zeros(settings.sequences, dtype=torch.int64), settings.context)
        yield windows(text, torch.ones(settings.sequences, dtype=torch.int64), settings.context)

    monkeypatch.setattr(language_training, "ChurningNodes", churning)
    monkeypatch.setattr(language_training, "batches_of", batches_until_one_is_killed)
    churn = ["--models", "--churn", "15", "--batches", "1", "--every", "1000", "--k-best", "4"]  # one a second

    assert main([*TINY, *FEW, *churn, "--text", str(folder), "--json", str(file)]) == 0

    (run,) = json.loads(file.read_text())["runs"]
    lost = run["lost"]
    assert run["killed_per_minute"] == 15
    assert lost["kills"] == len(churns[-1].kills) >= 1
    assert 0 < lost["updates_lost"] < lost["updates"]


def test_dense_blocks_are_equal_in_compute_or_in_weights():
    settings = Settings(width=16, grid=(4, 4), k_best=4)
    layer = settings.layer(0)
    expert = count_parameters(build_checked(layer))
    of_block = {
        model: count_parameters(dense_block(16, settings.inner_width(model)))
        for model in ("dense-compute", "dense-parameters")
    }

    assert settings.inner_width("dense-compute") * 2 * 2 * 16 == 4 * flop_per_row(layer)
    assert of_block["dense-compute"] == pytest.approx(4 * expert, rel=0.02)
    assert of_block["dense-parameters"] == pytest.approx(16 * expert, rel=0.02)
    assert expert_parameters(settings) == 2 * 16 * expert


def test_no_score_depends_on_later_bytes():
    torch.manual_seed(0)
    model = build("dense-compute", Settings(width=16, context=8), None)
    given = torch.randint(256, (1, 8))
    other = given.clone()
    other[0, 5:] = 0

    assert torch.equal(model(given)[0, :5], model(other)[0, :5])
    assert not torch.equal(model(given)[0, 5:], model(other)[0, 5:])


def test_an_untrained_model_writes_bytes_and_knows_about_nothing():
    torch.manual_seed(0)
    model = ByteTransformer(layers=1, width=16, heads=2, context=8, feed_forward=lambda _: dense_block(16, 32))
    rows = windows(torch.arange(256).repeat(2), torch.tensor([0, 100]), 8)

    assert bits_per_byte(model, rows, 1) == pytest.approx(8, abs=0.5)
    written = [sample(model, b"def ", 12, temperature=0.7, seed=seed) for seed in (0, 0, 1)]
    assert written[0] == written[1] != written[2]
    assert model.training


def test_texts_are_read_in_two_parts(folder):
    text = wikitext(folder)
    assert bytes(text.unseen.tolist()).startswith(b"the unseen experts")
    (folder / "wiki.train.tokens").rename(folder / "wiki.train.raw")
    assert torch.equal(wikitext(folder).train, text.train)
    with pytest.raises(FileNotFoundError, match=r"wiki\.train\.tokens nor wiki\.train\.raw"):
        wikitext(folder / "nowhere")

    library = standard_library(1_000)
    assert (len(library.train), len(library.unseen)) == (900, 100)
