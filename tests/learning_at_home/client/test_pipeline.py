"""Several batches under way at once: what is computed, in which order, and how it ends. Real nodes on real sockets."""

import copy
import io
import sys
import threading
import time
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.client import pipeline as pipelines
from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.pipeline import Pipeline
from learning_at_home.client.progress import ProgressLine, TqdmProgress, progress_of
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.errors import ConfigError, ExpertFailed, NotEnoughExperts, UsageError
from tests.faults.tcp_proxy import TcpProxy
from tests.learning_at_home.client.small_swarm import SmallSwarm, layer, twice

Batch = tuple[Tensor, Tensor]


def make_batches(number: int) -> list[Batch]:
    return [(torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)) for _ in range(number)]


def make_model(swarm: SmallSwarm) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.1), DMoE(swarm.swarm, "ffn0", 2), nn.Linear(6, 2)
    )
    return model.double()


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def local_loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def divide_by_zero(model: nn.Module, batch: Batch) -> Tensor:
    return batch[0] * (1 / 0)


def pipeline_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pipeline")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert pipeline_threads() == []


def test_one_batch_at_a_time_is_a_plain_loop_bit_for_bit(small_swarm):
    batches = make_batches(6)
    found = []
    for with_pipeline in (False, True):
        swarm = small_swarm(layer())
        swarm.add_host([0, 1, 2, 3])  # with the same initial weights each time
        torch.manual_seed(3)
        model = make_model(swarm)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        if with_pipeline:
            for step in swarm.swarm.pipeline(batches, model, loss_of, optimizer, in_flight=1, clip_norm=0.5):
                losses.append(step.loss)
                assert step.staleness == 0
        else:
            for batch in batches:
                loss = loss_of(model, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                losses.append(float(loss.detach()))
        found.append((losses, model.state_dict()))

    (plain, plain_state), (piped, piped_state) = found
    assert piped == plain
    assert plain_state.keys() == piped_state.keys()
    assert all(torch.equal(plain_state[name], piped_state[name]) for name in plain_state)


def test_updates_are_those_of_each_batch_alone_with_the_parameters_of_its_start():
    """Against the same stale gradients computed one after another, without any thread."""
    torch.manual_seed(0)
    batches = make_batches(7)
    model = nn.Linear(6, 2).double()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    reference_optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)

    steps = list(Pipeline(batches, model, local_loss, optimizer, in_flight=3))

    snapshots = [copy.deepcopy(reference) for _ in range(3)]  # with which batch 0, 1 and 2 begin
    for number, batch in enumerate(batches):
        used = snapshots[number]
        gradients = torch.autograd.grad(local_loss(used, batch), list(used.parameters()))
        for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
            parameter.grad = gradient
        reference_optimizer.step()
        snapshots.append(copy.deepcopy(reference))
    for parameter, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(parameter, wanted)
    assert [step.number for step in steps] == list(range(7))
    assert [step.staleness for step in steps] == [0, 1, 2, 2, 2, 2, 2]
    assert all(step.batch is batch for step, batch in zip(steps, batches, strict=True))


def test_steps_come_in_order_though_later_batches_are_done_first():
    model = nn.Linear(6, 2).double()
    first_may_end = threading.Event()

    def loss(model: nn.Module, batch: tuple[int, Batch]) -> Tensor:
        if batch[0] == 0:
            assert first_may_end.wait(10)
        elif batch[0] == 3:
            first_may_end.set()
        return local_loss(model, batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = list(Pipeline(list(enumerate(make_batches(5))), model, loss, optimizer, in_flight=4))

    assert [step.batch[0] for step in steps] == [0, 1, 2, 3, 4]


def test_out_of_order_a_slow_batch_holds_up_nobody_until_it_is_as_stale_as_it_may_be():
    model, first_may_end = nn.Linear(6, 2).double(), threading.Event()

    def loss(model: nn.Module, batch: tuple[int, Batch]) -> Tensor:
        assert batch[0] or first_may_end.wait(10)
        return local_loss(model, batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(enumerate(make_batches(12)))
    with Pipeline(batches, model, loss, optimizer, in_flight=4, in_order=False) as steps:
        before = [next(steps) for _ in range(7)]
        assert 0 not in [step.number for step in before]
        first_may_end.set()
        oldest = next(steps)
        assert (oldest.number, oldest.staleness) == (0, 2 * 4 - 1)
        after = list(steps)
    given = [*before, oldest, *after]
    assert sorted(step.number for step in given) == list(range(12))
    assert all(step.batch[0] == step.number for step in given)
    assert all(0 <= step.staleness <= 2 * 4 - 1 for step in given)


def test_out_of_order_each_update_is_of_its_batch_alone_with_the_parameters_of_its_start():
    model, second_done = nn.Linear(6, 2).double(), threading.Event()
    reference = copy.deepcopy(model)

    def loss(model: nn.Module, batch: tuple[int, Batch]) -> Tensor:
        assert batch[0] or second_done.wait(10)
        return local_loss(model, batch[1])

    batches = list(enumerate(make_batches(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Pipeline(batches, model, loss, optimizer, in_flight=2, in_order=False) as steps:
        order = [next(steps).number]
        second_done.set()
        order += [step.number for step in steps]
    assert order == [1, 0]
    gradients = [
        torch.autograd.grad(local_loss(reference, batch), list(reference.parameters())) for _, batch in batches
    ]
    for parameter, start, first, second in zip(model.parameters(), reference.parameters(), *gradients, strict=True):
        torch.testing.assert_close(parameter, start - 0.1 * second - 0.1 * first)


def test_out_of_order_a_batch_that_fails_is_told_and_the_others_go_on():
    model = nn.Linear(6, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(model: nn.Module, batch: tuple[int, Batch]) -> Tensor:
        if batch[0] == 1:
            raise ExpertFailed("lost")
        return local_loss(model, batch[1])

    batches = list(enumerate(make_batches(5)))
    with Pipeline(batches, model, loss, optimizer, in_flight=3, in_order=False, tolerate=1) as steps:
        given = {step.number: step.error for step in steps}
    assert set(given) == set(range(5))
    assert [number for number, error in given.items() if error is not None] == [1]


def test_a_batch_is_taken_only_when_there_is_room_and_a_step_is_asked_for():
    taken = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(make_batches(10)):
            taken.append(number)
            yield batch

    model = nn.Linear(6, 2).double()
    steps = Pipeline(batches(), model, local_loss, torch.optim.SGD(model.parameters(), lr=0.1), in_flight=3)
    assert taken == []
    next(steps)
    assert len(taken) == 3
    next(steps)
    assert len(taken) == 4
    assert len(list(steps)) == 8


def test_the_error_of_a_batch_comes_in_its_turn_with_its_number_and_the_others_go_on():
    model = nn.Linear(6, 2).double()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if batch is bad:
            raise NotEnoughExperts("nobody is alive")
        return local_loss(model, batch)

    batches = make_batches(5)
    bad = batches[2]
    steps = Pipeline(batches, model, loss, torch.optim.SGD(model.parameters(), lr=0.1), in_flight=3)
    before = [next(steps).number, next(steps).number]
    with pytest.raises(NotEnoughExperts) as raised:
        next(steps)

    assert before == [0, 1]
    assert any("batch 2" in note for note in raised.value.__notes__)
    assert [step.number for step in steps] == [3, 4]


def test_so_many_errors_of_the_swarm_in_a_row_are_steps_and_one_more_is_raised():
    model = nn.Linear(6, 2).double()

    def loss(model: nn.Module, batch: tuple[bool, Batch]) -> Tensor:
        if batch[0]:
            raise ExpertFailed("out of luck")
        return local_loss(model, batch[1])

    fails = [True, True, False, True, True, True, False]
    batches = list(zip(fails, make_batches(7), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = Pipeline(batches, model, loss, optimizer, in_flight=2, tolerate=2)  # ends with its last batch
    weights = model.weight.detach().clone()
    seen = [next(steps) for _ in range(2)]
    assert torch.equal(model.weight, weights), "a failed batch updates nothing"
    seen += [next(steps) for _ in range(3)]

    assert [isinstance(step.error, ExpertFailed) for step in seen] == fails[:5]
    assert [step.loss == step.loss for step in seen] == [not failed for failed in fails[:5]]
    with pytest.raises(ExpertFailed):
        next(steps)
    assert [step.number for step in steps] == [6]


def test_an_optimizer_that_raises_loses_its_batch_and_no_other():
    model = nn.Linear(6, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fails = iter([True, True, False, False])

    def step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if next(fails):
            raise RuntimeError("out of memory")

    optimizer.register_step_pre_hook(step)
    steps = Pipeline(make_batches(4), model, local_loss, optimizer, in_flight=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="memory"):
            next(steps)

    assert [step.number for step in steps] == [2, 3]


def test_the_callers_own_mistakes_are_raised_whatever_is_tolerated():
    model = nn.Linear(6, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Pipeline(make_batches(1), model, lambda model, batch: model(batch[0]), optimizer, tolerate=5) as steps,
        pytest.raises(UsageError, match="one number"),
    ):
        next(steps)
    with (
        Pipeline(make_batches(1), model, divide_by_zero, optimizer, tolerate=5) as steps,
        pytest.raises(ZeroDivisionError),
    ):
        next(steps)
    with pytest.raises(ConfigError, match="in_flight"):
        Pipeline(make_batches(1), model, local_loss, optimizer, in_flight=0)
    with pytest.raises(ConfigError, match="tolerate"):
        Pipeline(make_batches(1), model, local_loss, optimizer, tolerate=-1)
    with pytest.raises(UsageError, match="2 of the optimizer's 2 parameters"):
        Pipeline(make_batches(1), copy.deepcopy(model), local_loss, optimizer)


def test_an_iterator_that_breaks_is_told_after_the_batches_that_it_gave():
    def batches() -> Iterator[Batch]:
        yield from make_batches(2)
        raise OSError("the disk is gone")

    model = nn.Linear(6, 2).double()
    steps = Pipeline(batches(), model, local_loss, torch.optim.SGD(model.parameters(), lr=0.1), in_flight=4)
    assert [next(steps).number, next(steps).number] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(steps)


def test_leaving_the_loop_ends_it_and_no_backward_follows_the_forwards_under_way(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    model = make_model(swarm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reached = threading.Semaphore(0)
    may_end = threading.Event()

    def loss(model: nn.Module, batch: tuple[int, Batch]) -> Tensor:
        value = loss_of(model, batch[1])
        if batch[0]:
            reached.release()
            assert may_end.wait(10)
        return value

    for step in swarm.swarm.pipeline(enumerate(make_batches(9)), model, loss, optimizer, in_flight=3):
        assert step.number == 0
        for _ in range(2):
            assert reached.acquire(timeout=10)
        threading.Timer(0.05, may_end.set).start()  # while the loop is being left
        break

    assert pipeline_threads() == []
    assert {work.operation for work in node.seen} == {"forward", "backward"}
    forwards = sum(work.operation == "forward" for work in node.seen)
    assert sum(work.operation == "backward" for work in node.seen) < forwards


@pytest.mark.parametrize(
    "freeze",
    [
        lambda layer: layer.requires_grad_(False),
        lambda layer: layer.eval(),
        lambda layer: setattr(layer, "train_experts", False),
    ],
)
@pytest.mark.parametrize("kind", [DMoE, RemoteExpert])
def test_experts_that_are_frozen_on_the_way_learn_nothing_from_the_next_batch_on(small_swarm, kind, freeze):
    swarm = small_swarm(layer((1,)))
    node = swarm.add_wilful([0], twice)
    remote = DMoE(swarm.swarm, "ffn0", 1) if kind is DMoE else RemoteExpert(swarm.swarm, "ffn0.0")
    model = nn.Sequential(nn.Linear(6, 6), remote).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with swarm.swarm.pipeline(
        make_batches(2), model, lambda model, batch: model(batch[0]).sum(), optimizer, in_flight=1
    ) as steps:
        next(steps)
        freeze(remote)
        next(steps)

    last = ["forward", "gradient"] if remote.training else ["eval_forward", "eval_gradient"]
    assert [work.operation for work in node.seen] == ["forward", "backward", *last]


def test_usage_of_the_model_counts_the_batches_of_all_its_copies_and_no_other_copys(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1, 2, 3], twice)
    model = make_model(swarm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    list(swarm.swarm.pipeline(make_batches(5), model, loss_of, optimizer, in_flight=3))
    (dmoe,) = [module for module in model if isinstance(module, DMoE)]
    another = copy.deepcopy(dmoe)
    another(make_batches(1)[0][0])

    assert (dmoe.usage().batches, another.usage().batches) == (5, 6)
    assert dmoe.usage().experts_per_row == pytest.approx(2.0)


def test_an_interrupt_ends_it(monkeypatch):
    model = nn.Linear(6, 2).double()
    steps = Pipeline(make_batches(9), model, local_loss, torch.optim.SGD(model.parameters(), lr=0.1), in_flight=3)
    next(steps)

    def interrupt(replica: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "_update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert pipeline_threads() == []
    assert list(steps) == []


def test_calls_that_do_not_end_are_left_to_their_deadlines(monkeypatch, caplog):
    monkeypatch.setattr(pipelines, "GOODBYE_S", 0.01)
    model = nn.Linear(6, 2).double()
    may_end = threading.Event()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert may_end.wait(10)
        return local_loss(model, batch)

    steps = Pipeline(make_batches(9), model, loss, torch.optim.SGD(model.parameters(), lr=0.1), in_flight=3)
    steps._fill()
    steps.close()

    assert "3 batches" in caplog.text
    may_end.set()
    deadline = time.monotonic() + 10
    while pipeline_threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_closed_swarm_begins_no_pipeline(small_swarm):
    swarm = small_swarm(layer())
    model = make_model(swarm)
    swarm.swarm.close()
    with pytest.raises(UsageError, match="closed"):
        swarm.swarm.pipeline([], model, loss_of, torch.optim.SGD(model.parameters(), lr=0.1))


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_many_batches_under_way_hide_the_distance(small_swarm, device):
    """50 ms each way: one at a time a step takes 200 ms, eight at a time an eighth of it. Half of that is required."""
    swarm = small_swarm(layer(deadline_s=20.0))
    host = swarm.add_host([0, 1, 2, 3])
    with TcpProxy(host.server.port, delay_s=0.05) as proxy:
        swarm.announce(swarm.identities[0], proxy.port, [0, 1, 2, 3])
        model = make_model(swarm).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def loss_of(model: nn.Module, batch: Batch) -> Tensor:
            return nn.functional.mse_loss(model(batch[0].to(device)), batch[1].to(device))

        def seconds_per_step(number: int, in_flight: int) -> float:
            begin = time.monotonic()
            steps = list(swarm.swarm.pipeline(make_batches(number), model, loss_of, optimizer, in_flight=in_flight))
            assert len(steps) == number
            return (time.monotonic() - begin) / number

        seconds_per_step(8, 8)  # connections are made
        alone, together = seconds_per_step(3, 1), seconds_per_step(32, 8)
        assert alone >= 0.2
        assert alone / together > 4
        swarm.swarm.close()


def test_a_terminal_sees_one_line_that_is_rewritten_and_ends_with_the_last_step(monkeypatch):
    stream = io.StringIO()
    line = ProgressLine(3, stream)
    for done in (1, 2, 3):
        line.step(done, 0.5 / done, done - 1)
    line.close()
    line.close()

    assert stream.getvalue().startswith("\rbatch 1/3 · loss 0.5 · 0 updates stale")
    assert stream.getvalue().count("\n") == 1
    assert "batch 3/3" in stream.getvalue().rsplit("\r", 1)[1]


def test_progress_is_shown_on_terminals_and_when_asked_for_by_tqdm_where_it_is(monkeypatch, capsys):
    class Bar:
        def __init__(self, **settings: object) -> None:
            self.settings, self.count, self.closed = settings, 0, False

        def set_postfix(self, **figures: object) -> None:
            self.figures = figures

        def update(self, number: int) -> None:
            self.count += number

        def close(self) -> None:
            self.closed = True

    progress_of(3, None).step(1, 0.5, 0)
    progress_of(3, False).step(1, 0.5, 0)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(progress_of(3, True), ProgressLine)
    module = types.ModuleType("tqdm")
    module.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", module)

    shown = progress_of(3, True)
    assert isinstance(shown, TqdmProgress)
    shown.step(1, 0.5, 2)
    shown.close()
    assert (shown._bar.count, shown._bar.closed, shown._bar.settings["total"]) == (1, True, 3)
