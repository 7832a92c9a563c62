"""Convergence on a virtual clock, tiny: gradients are real, delays pass, calls fail; not how well it learns."""

import dataclasses
import gzip
import json
import struct
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import learning_at_home as lah
from experiments.asynchronous_trainers import Rows
from experiments.asynchrony import harmless_rates, histogram
from experiments.asynchrony import main as asynchrony
from experiments.convergence import main
from experiments.mnist import load_mnist, read_idx
from experiments.virtual_swarm import Delays, VirtualSwarm
from experiments.virtual_threads import VirtualThreads
from experiments.virtual_training import Condition, Sizes, grid_of, inner_width, project_of, run, shares_of
from learning_at_home.errors import ConfigError
from node_agent.experts.architectures import FeedForward, build_expert

TINY = Sizes(hidden_size=8, layers=2, batches=12, rows_per_batch=6, evaluate_every=6, nodes=2, k_best=2)
SIX = Condition(experts=6, trainers=4, delay_s=0.5, failed_share=0.0)


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(0)
    data = torch.randn(40, 5, generator=random)
    labels = torch.arange(40) % 3
    return Rows(data[:30], labels[:30], data[30:], labels[30:])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_virtual_swarm_computes_what_local_experts_do():
    sizes = dataclasses.replace(TINY, layers=1, optimizer="sgd", expert_rate=0.0)
    project = project_of(SIX, sizes, 0)
    threads = VirtualThreads()
    swarm = VirtualSwarm(threads, project, shares_of(project, 2), delays=Delays(0.5, 0))
    x = torch.randn(4, 8)
    found: dict[str, Any] = {}

    def calls():
        layer = lah.DMoE(swarm.swarm, "ffn0", 6)
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.square().sum().backward()
        found.update(y=y.detach(), gradient=inputs.grad, gate=layer.gate, waited_s=threads.monotonic_s())

    started_s = threads.monotonic_s()
    with swarm.swarm:
        threads.start(calls)
        threads.run()

    cells = project.layer("ffn0").cells
    experts = [build_expert(project.layer("ffn0"), project.id, cells.uid("ffn0", cell)) for cell in range(6)]
    inputs = x.clone().requires_grad_()
    lines = found["gate"].line_scores(inputs)
    scores = torch.stack([lines[:, cell // 2] + lines[:, 3 + cell % 2] for cell in range(6)], dim=1)
    y = torch.einsum("rk,krd->rd", scores.softmax(dim=1), torch.stack([expert(inputs) for expert in experts]))
    y.square().sum().backward()
    torch.testing.assert_close(found["y"], y.detach())
    torch.testing.assert_close(found["gradient"], inputs.grad)
    assert found["waited_s"] > started_s
    assert sum(node.updates for node in swarm.nodes) == 6
    assert swarm.delays.drawn == 4  # two nodes, forward and backward


def test_the_same_seed_gives_the_same_run_and_another_one_another(rows):
    def figures(seed):
        found = dataclasses.asdict(run(dataclasses.replace(SIX, failed_share=0.2), TINY, rows, seed))
        del found["seconds"]
        return found

    assert figures(1) == figures(1)
    assert figures(1)["loss"] != figures(2)["loss"]


def test_delays_pass_and_calls_fail_as_told(rows):
    calm = run(SIX, TINY, rows, 0)
    failing = run(dataclasses.replace(SIX, failed_share=0.3, delay_s=5.0), TINY, rows, 0)

    assert [batches for batches, _, _ in calm.points] == [6, 12]
    assert (calm.failures, calm.lost_batches, calm.zero_gradient_rows) == (0, 0, 0)
    assert 0.25 < calm.mean_delay_s < 1.0
    assert 2.5 < failing.mean_delay_s < 10.0
    assert failing.virtual_s > 5 * calm.virtual_s
    assert failing.failures == failing.failed
    assert 0.15 < failing.failed / failing.calls < 0.45
    assert sum(calm.staleness.values()) == 12
    assert sum(calm.expert_staleness.values()) == calm.expert_updates > 0


def test_one_trainer_without_delay_is_plain_training(rows):
    sizes = dataclasses.replace(TINY, batches=5, evaluate_every=5)
    condition = Condition(experts=0, trainers=1, delay_s=0.0, failed_share=0.0, protocol="paper")

    found = run(condition, sizes, rows, 3)

    assert found.staleness == {0: 5}
    assert found.calls == 0


@pytest.mark.parametrize("protocol,stale", [("alike", True), ("paper", False)])
def test_the_papers_protocol_has_fresh_experts_and_late_trainers(rows, protocol, stale):
    condition = dataclasses.replace(SIX, trainers=8, protocol=protocol)

    found = run(condition, dataclasses.replace(TINY, batches=32), rows, 0)

    assert max(found.staleness) >= 5
    assert (max(found.expert_staleness) > 0) == stale
    assert found.mean_delay_s > 0.2


def test_a_dense_block_on_a_node_stands_for_as_many_products(rows):
    dense = Condition(experts=0, trainers=3, delay_s=0.1, failed_share=0.5)

    found = run(dense, TINY, rows, 0)

    width = inner_width(8, 2)
    assert width**2 + 2 * 8 * width == pytest.approx(2 * (2 * 8 * 32 + 32 * 32), rel=0.05)
    assert found.lost_batches > 0  # nobody else can be asked
    assert sum(found.staleness.values()) == 12 - found.lost_batches
    assert [grid_of(number) for number in (6, 64, 4096)] == [(3, 2), (8, 8), (64, 64)]


def test_a_dense_model_of_the_papers_protocol_is_trained_as_by_torch(rows):
    """One trainer, no delay: the run's loss is that of the loop that everybody would write."""
    sizes = dataclasses.replace(TINY, batches=4, evaluate_every=4, layers=1)
    condition = Condition(experts=0, trainers=1, delay_s=0.0, failed_share=0.0, protocol="paper")
    found = run(condition, sizes, rows, 7)

    torch.manual_seed(7)
    ends = nn.Linear(5, 8), nn.Linear(8, 3)
    model = nn.Sequential(ends[0], FeedForward(8, inner_width(8, 2)), ends[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=sizes.learning_rate)
    order = torch.Generator().manual_seed(7_000)
    for _ in range(4):
        picks = torch.randint(30, (6,), generator=order)
        optimizer.zero_grad()
        cross_entropy(model(rows.train_rows[picks]), rows.train_labels[picks]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert found.loss == pytest.approx(cross_entropy(model(rows.test_rows), rows.test_labels).item(), rel=1e-5)


def test_a_tiny_experiment_writes_its_files_and_goes_on_from_them(tmp_path, capsys):
    file, plot = tmp_path / "found.json", tmp_path / "accuracy.svg"
    size = "--batches 4 --rows 4 --every 2 --hidden-size 8 --train-rows 100 --test-rows 50 --seeds 2 --delays-ms 10"
    size += " --trainers 2 --experts 0 4 --failed 0 0.2"

    assert main([*size.split(), "--json", str(file), "--plot", str(plot)]) == 0

    document = json.loads(file.read_text())
    names = [(one["condition"]["protocol"], one["condition"]["experts"]) for one in document["runs"]]
    assert len(names) == 14  # two seeds; in the paper's protocol no dense model with failures
    assert names.count(("paper", 0)) == 2
    for protocol in ("alike", "paper"):
        assert "4 experts, 20% failing" in (tmp_path / f"accuracy-{protocol}-2-10.svg").read_text()
    assert "| alike: 2 trainers, 10 ms | dense |" in capsys.readouterr().out

    more = [*size.split(), "--first-seed", "2", "--seeds", "1", "--protocols", "paper", "--add", str(file)]
    assert main([*more, "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["runs"]) == 17


@pytest.mark.slow
def test_a_real_swarm_stands_behind_its_lines_and_loses_calls(tmp_path):
    file = tmp_path / "found.json"
    size = "--batches 4 --rows 8 --every 4 --hidden-size 8 --train-rows 100 --test-rows 50 --seeds 1 --delays-ms 40"
    size += " --trainers 2 --experts 4 --failed 0.3 --nodes 2 --protocols alike --real --in-process"

    assert main([*size.split(), "--json", str(file)]) == 0

    (found,) = json.loads(file.read_text())["runs"]
    assert found["failed"] > 0
    assert found["calls"] > found["failures"] > 0
    assert found["seconds"] > 0.1


def test_what_only_a_virtual_clock_can_do_is_refused_for_real(tmp_path):
    size = ["--train-rows", "100", "--test-rows", "50", "--real"]
    with pytest.raises(ConfigError, match="alike"):
        main([*size, "--protocols", "paper", "--experts", "4"])
    with pytest.raises(ConfigError, match="in-process"):
        main([*size, "--protocols", "alike", "--experts", "0"])


def test_asynchrony_writes_staleness_and_loss_by_rate(tmp_path, capsys):
    file, plot = tmp_path / "found.json", tmp_path / "loss.svg"
    size = "--batches 8 --rows 4 --every 4 --trainers 1 4 --rates 0.001 0.01 --seeds 1 --experts 4"
    size += " --train-rows 100 --test-rows 50"

    assert asynchrony([*size.split(), "--json", str(file), "--plot", str(plot)]) == 0

    runs = json.loads(file.read_text())["runs"]
    assert [(one["condition"]["trainers"], one["rate"]) for one in runs] == [(1, 1e-3), (1, 0.01), (4, 1e-3), (4, 0.01)]
    assert runs[0]["staleness"] == {"0": 8}
    assert max(map(int, runs[2]["staleness"])) >= 2
    assert "4 trainers" in plot.read_text()
    assert "| 4 | experts |" in capsys.readouterr().out


def test_a_rate_is_harmless_where_the_loss_is_near_that_of_one_trainer():
    losses = {1: {1e-3: [0.5, 0.7], 3e-3: [1.0, 1.0]}, 64: {1e-3: [0.65, 0.65], 3e-3: [5.0, 0.1]}}

    assert harmless_rates(losses) == {1: [1e-3, 3e-3], 64: [1e-3]}
    assert [(low, high) for low, high, _ in histogram({})][:4] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert [share for _, _, share in histogram({"0": 1, "5": 1, "64": 2})] == [0.25, 0, 0, 0.25, 0, 0, 0, 0.5]


def _idx(*shape, numbers):
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(numbers)


def test_mnist_is_read_from_plain_and_compressed_files(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(2, 2, 3, numbers=range(12)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(2, numbers=[7, 1])))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(1, 2, 3, numbers=[255] * 6)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(1, numbers=[9]))

    rows = load_mnist(tmp_path)

    assert rows.train_rows.shape == (2, 6)
    assert rows.train_labels.tolist() == [7, 1]
    assert rows.test_rows[0, 0].item() == pytest.approx((1 - 0.1307) / 0.3081)


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "no IDX file"),
        (b"\0\0\x09\x01\0\0\0\x01\0", "no IDX file"),
        (b"\0\0\x08\x02\0\0\0\x01", "ends in its header"),
        (_idx(3, numbers=[1, 2]), "announces"),
    ],
)
def test_a_file_that_is_not_mnist_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_idx(tmp_path, "labels")


def test_a_folder_without_the_files_and_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has neither"):
        load_mnist(tmp_path)
    for part, images, labels in (("train", 2, 1), ("t10k", 1, 1)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(_idx(images, 1, 1, numbers=range(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(_idx(labels, numbers=range(labels)))
    with pytest.raises(ConfigError, match="do not fit"):
        load_mnist(tmp_path)
