"""Gathered gradients become an update in time, at the end, and in the thread that computes."""

from collections.abc import Callable, Iterator
from threading import get_ident

import pytest
import torch
from torch import Tensor

from learning_at_home.clock import SystemClock
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import Failure, Reply
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.backward_window import BackwardWindow
from node_agent.runtime.batch_runner import Job
from node_agent.runtime.batcher import Limits, Pending
from node_agent.runtime.computation import compute
from node_agent.runtime.device_thread import DeviceThread
from node_agent.runtime.statistics import Statistics
from node_agent.runtime.update_timer import UpdateTimer

CPU = torch.device("cpu")
CLOCK = SystemClock()
TIMEOUT_S = 10.0


def hosted(**optimizer) -> HostedExperts:
    layer = LayerSpec(
        prefix="ffn0", grid=(2,), architecture="mlp", hidden_size=4, optimizer=OptimizerSpec(name="sgd", **optimizer)
    )
    return HostedExperts([Expert.create(ExpertUid("ffn0", (cell,)), layer, "digits", CPU) for cell in range(2)])


class Setting:
    """A timer and two experts."""

    def __init__(self, **optimizer) -> None:
        experts = hosted(**optimizer)
        self.first, self.second = experts.by_uid.values()
        self.statistics = Statistics(experts.by_uid)
        self.timer = UpdateTimer(experts, self.statistics)

    def gather(self, expert: Expert, now: float) -> None:
        compute(expert, "backward", [(torch.randn(1, 4), torch.randn(1, 4))])
        self.timer.observe(expert, now)


def test_an_update_is_due_so_long_after_the_first_gradient_that_waits():
    setting = Setting(update_seconds=2.0)
    setting.gather(setting.first, 10.0)
    setting.gather(setting.second, 11.0)
    setting.gather(setting.first, 11.5)

    assert not setting.timer.is_due(11.9)
    assert setting.timer.wait_s(11.5) == pytest.approx(0.5)
    assert setting.timer.is_due(12.0)
    setting.timer.step_due(12.0)

    assert (setting.first.updates, setting.second.updates) == (1, 0)
    assert not setting.timer.is_due(12.9)
    assert setting.timer.is_due(13.0)


def test_an_update_for_rows_enough_leaves_nothing_to_wait_for():
    setting = Setting(update_seconds=2.0, update_rows=2)
    setting.gather(setting.first, 10.0)
    setting.gather(setting.first, 10.5)

    assert setting.first.updates == 1
    assert not setting.timer.is_due(100.0)


def test_without_a_time_rows_wait_for_company_until_the_node_leaves():
    setting = Setting(update_rows=100)
    setting.gather(setting.first, 10.0)

    assert setting.timer.wait_s(10.0) is None
    assert not setting.timer.is_due(1e18)
    setting.timer.finish()
    assert setting.timer.is_due(10.0)
    setting.timer.step_due(10.0)

    assert (setting.first.updates, setting.second.updates) == (1, 0)
    assert not setting.timer.is_due(11.0)


def test_an_update_that_nobody_asked_for_is_counted():
    setting = Setting(update_seconds=2.0)
    setting.gather(setting.first, 10.0)
    setting.timer.step_due(12.0)

    assert [(each.updates, each.update_age_s) for each in setting.statistics.snapshot(13.0)] == [(1, 1.0), (0, None)]


def test_an_optimizer_that_fails_in_time_loses_its_gradients_and_nothing_else(monkeypatch, caplog):
    setting = Setting(update_seconds=2.0)
    setting.gather(setting.first, 10.0)

    def fail(*_):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as failing:
        failing.setattr(setting.first._optimizer.rule, "step", fail)
        setting.timer.step_due(12.0)
    assert "an update was lost" in caplog.text
    assert "no such kernel" in caplog.text
    setting.gather(setting.first, 20.0)
    setting.timer.step_due(22.0)

    assert setting.first.updates == 1


class Callers:
    """Takes the answers of a device thread."""

    def __init__(self) -> None:
        self.num_answered = 0

    def answer(self, ticket: Ticket, message: Reply | Failure, frames: object = ()) -> None:
        assert isinstance(message, Reply)
        self.num_answered += 1

    def flush(self) -> None: ...

    def fail(self, ticket: Ticket, error: LearningAtHomeError) -> None:
        raise AssertionError(error)

    def wake(self) -> None: ...


class Running:
    """A device thread at work."""

    def __init__(self, quick_s: float = 0.0, **optimizer) -> None:
        self.experts = hosted(**optimizer)
        self.expert = self.experts.by_uid["ffn0.0"]
        statistics = Statistics(self.experts.by_uid)
        backwards = BackwardWindow(CLOCK.monotonic_s())
        self.thread = DeviceThread(self.experts, CPU, statistics, CLOCK, Limits(), 1, backwards, quick_s)
        self.callers = Callers()
        self.num_asked = 0
        self.thread.start(self.callers)

    def backward(self) -> None:
        now = CLOCK.monotonic_s()
        ticket = Ticket(b"", 1, 0, now + TIMEOUT_S, now, b"")
        tensors: tuple[Tensor, ...] = (torch.randn(1, 4), torch.randn(1, 4))
        self.thread.submit(Pending("ffn0.0", "backward", 1, 32, now, now + TIMEOUT_S, Job(ticket, tensors)))
        self.thread.work_here()
        assert self.thread.wait_until_idle(TIMEOUT_S)
        self.num_asked += 1
        assert self.callers.num_answered == self.num_asked


@pytest.fixture
def stopping() -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for each in running:
        each.thread.stop()


def test_an_idle_node_makes_the_update_when_its_time_has_come(stopping):
    running = Running(update_seconds=0.02)
    stopping.append(running)
    running.backward()

    deadline = CLOCK.monotonic_s() + TIMEOUT_S
    while not running.expert.updates and CLOCK.monotonic_s() < deadline:
        running.thread.wait_until_idle(TIMEOUT_S)

    assert running.expert.updates == 1


def test_a_node_that_finishes_makes_the_update_that_waits(stopping):
    running = Running(update_rows=100)
    stopping.append(running)
    running.backward()
    assert running.expert.updates == 0

    assert running.thread.finish(TIMEOUT_S)

    assert running.expert.updates == 1


def test_the_data_plane_computes_what_is_quick_and_leaves_updates_to_the_devices_thread(stopping, monkeypatch):
    running = Running(quick_s=TIMEOUT_S, update_rows=100)
    stopping.append(running)
    computed_by: list[int] = []
    updated_by: list[int] = []

    def noting(ids: list[int], function: Callable) -> Callable:
        def noted(*args):
            ids.append(get_ident())
            return function(*args)

        return noted

    expert, rule = running.expert, running.expert._optimizer.rule
    monkeypatch.setattr(expert, "gradients", noting(computed_by, expert.gradients))
    monkeypatch.setattr(rule, "step", noting(updated_by, rule.step))
    running.thread.finish(TIMEOUT_S)  # whatever is gathered from now on is due at once

    for _ in range(3):
        running.backward()

    assert computed_by[1:] == [get_ident()] * 2  # the first one nobody knows to be quick
    assert len(updated_by) == 3
    assert get_ident() not in updated_by


def test_a_node_that_stops_makes_the_update_that_waits():
    running = Running(update_rows=100)
    running.backward()

    running.thread.stop(TIMEOUT_S)

    assert not running.thread.is_alive
    assert running.expert.updates == 1
