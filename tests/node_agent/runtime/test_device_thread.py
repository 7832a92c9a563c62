"""The thread between the queue and the device: who is answered, when, and what stops it."""

import math
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.clock import SystemClock
from learning_at_home.errors import DeadlinePassed, LearningAtHomeError, NodeDraining, NodeOverloaded
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import Failure, Reply
from node_agent.experts.expert import Expert
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.backward_window import BackwardWindow
from node_agent.runtime.batch_runner import Job
from node_agent.runtime.batcher import Limits, Pending
from node_agent.runtime.device_thread import DeviceThread
from node_agent.runtime.statistics import Statistics

LAYER = LayerSpec(prefix="ffn0", grid=(3,), hidden_size=4, dtype="float64", architecture="nop")
CLOCK = SystemClock()
TIMEOUT_S = 10.0


class Gate(nn.Module):
    """Waits in forward until it is opened: the device is busy for exactly as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.entered = threading.Event()
        self.open = threading.Event()
        self.batches: list[int] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.batches.append(len(rows))
        self.entered.set()
        assert self.open.wait(TIMEOUT_S)
        return rows


class Inbox:
    """What callers would get."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self.outcomes: dict[int, Reply | LearningAtHomeError] = {}
        self.on_answer: Callable[[], None] = lambda: None
        self.num_answered_at_flush: list[int] = []

    def answer(self, ticket, message, frames=()) -> None:
        self.on_answer()
        self._put(ticket.call_id, message)

    def flush(self) -> None:
        self.num_answered_at_flush.append(len(self.outcomes))

    def fail(self, ticket, error) -> None:
        self._put(ticket.call_id, error)

    def wake(self) -> None:
        pass

    def wait_for(self, number: int) -> dict:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.outcomes) >= number, TIMEOUT_S)
            return dict(self.outcomes)

    def _put(self, call_id: int, outcome: Reply | LearningAtHomeError) -> None:
        with self._arrived:
            assert call_id not in self.outcomes, "answered twice"
            self.outcomes[call_id] = outcome
            self._arrived.notify_all()


class Setting:
    def __init__(self, limits: Limits, quick_s: float = 0.0) -> None:
        self.gate = Gate()
        cpu = torch.device("cpu")
        experts = HostedExperts([Expert(ExpertUid("ffn0", (cell,)), LAYER, self.gate, cpu) for cell in range(3)])
        self.statistics = Statistics(experts.by_uid)
        self.thread = DeviceThread(
            experts,
            cpu,
            self.statistics,
            CLOCK,
            limits,
            num_threads=1,
            backwards=BackwardWindow(CLOCK.monotonic_s()),
            quick_s=quick_s,
        )
        self.inbox = Inbox()
        self.thread.start(self.inbox)

    def submit(self, call_id: int, *, rows: int = 1, timeout_s: float = 60.0, value: float = 0.0) -> None:
        self.queue(call_id, "ffn0.0", rows=rows, timeout_s=timeout_s, value=value)
        self.thread.work_here()

    def queue(self, call_id: int, uid: str, *, rows: int = 1, timeout_s: float = 60.0, value: float = 0.0) -> None:
        now = CLOCK.monotonic_s()
        ticket = Ticket(b"", call_id, 0, now + timeout_s, now, b"")
        tensor = torch.full((rows, 4), value, dtype=torch.float64)
        self.thread.check_room(uid, rows, 32 * rows)
        self.thread.submit(Pending(uid, "forward", rows, 32 * rows, now, now + timeout_s, Job(ticket, (tensor,))))

    def occupy(self) -> None:
        """Have the device busy with call 0."""
        self.submit(0)
        assert self.gate.entered.wait(TIMEOUT_S)


@pytest.fixture
def setting() -> Iterator[Setting]:
    setting = Setting(Limits(queued_rows=4))
    yield setting
    setting.gate.open.set()
    setting.thread.stop()


def test_what_came_while_the_device_was_busy_is_one_batch(setting):
    setting.occupy()
    setting.submit(1, rows=2)
    setting.submit(2, rows=1)
    setting.gate.open.set()

    outcomes = setting.inbox.wait_for(3)

    assert setting.gate.batches == [1, 3]
    assert outcomes[1].tensors[0].shape == (2, 4)
    assert outcomes[2].tensors[0].shape == (1, 4)
    assert outcomes[1].queued_us > 0


def test_work_past_its_deadline_is_refused_uncomputed(setting):
    setting.occupy()
    setting.submit(1, timeout_s=0.0)
    setting.submit(2)
    setting.gate.open.set()

    outcomes = setting.inbox.wait_for(3)

    assert isinstance(outcomes[1], DeadlinePassed)
    assert "ffn0.0: the deadline passed" in str(outcomes[1])
    assert setting.gate.batches == [1, 1]
    assert setting.statistics.refused == 1


def test_a_full_queue_refuses_at_once_and_loses_nothing(setting):
    setting.occupy()
    for call_id in range(1, 5):
        setting.submit(call_id)

    with pytest.raises(NodeOverloaded):
        setting.submit(5)
    setting.gate.open.set()

    assert all(isinstance(outcome, Reply) for outcome in setting.inbox.wait_for(5).values())


def test_late_work_makes_room_in_a_full_queue(setting):
    setting.occupy()
    for call_id in range(1, 5):
        setting.submit(call_id, timeout_s=0.0)

    setting.submit(5)
    setting.gate.open.set()

    outcomes = setting.inbox.wait_for(6)
    assert isinstance(outcomes[5], Reply)
    assert all(isinstance(outcomes[call_id], DeadlinePassed) for call_id in range(1, 5))


def test_it_is_idle_when_everything_was_answered(setting):
    setting.occupy()
    setting.submit(1)

    assert not setting.thread.wait_until_idle(0.0)
    setting.gate.open.set()

    assert setting.thread.wait_until_idle(TIMEOUT_S)
    assert set(setting.inbox.outcomes) == {0, 1}


@pytest.mark.parametrize("num_rows", [1, 2_000])
def test_an_answer_that_is_not_finite_is_a_failure_also_where_it_is_sent_unseen(num_rows):
    setting = Setting(Limits())
    setting.gate.open.set()
    setting.submit(0, rows=num_rows, value=math.nan)
    setting.submit(1, rows=num_rows)
    assert setting.thread.wait_until_idle(TIMEOUT_S)

    outcomes = setting.inbox.wait_for(2)
    counted, *_ = setting.statistics.snapshot(CLOCK.monotonic_s())
    setting.thread.stop()

    # A large one was on its way, to a caller that looks at it, before it was looked at here.
    assert isinstance(outcomes[0], Failure if num_rows == 1 else Reply)
    assert isinstance(outcomes[1], Reply)
    assert (counted.calls, counted.failures, counted.rows_forward) == (2, 1, num_rows)


def test_stopping_refuses_what_waits_and_everything_after(setting):
    setting.occupy()
    setting.submit(1)
    stopper = threading.Thread(target=setting.thread.stop)
    stopper.start()
    outcomes = setting.inbox.wait_for(1)
    setting.gate.open.set()
    stopper.join(TIMEOUT_S)

    assert isinstance(outcomes[1], NodeDraining)
    assert not setting.thread.is_alive
    assert setting.thread.error is None
    with pytest.raises(NodeDraining):
        setting.submit(2)


def test_a_batch_that_is_known_to_be_quick_is_computed_by_the_data_planes_thread():
    setting = Setting(Limits(), quick_s=1.0)
    setting.gate.open.set()
    threads: list[str] = []
    setting.inbox.on_answer = lambda: threads.append(threading.current_thread().name)
    setting.submit(0)
    setting.inbox.wait_for(1)
    assert setting.thread.wait_until_idle(TIMEOUT_S)
    setting.submit(1)
    assert threads == ["device cpu", threading.current_thread().name]
    setting.thread.stop()


def that_knows_a_row_to_be_quick() -> Setting:
    """Call 0 was answered."""
    setting = Setting(Limits(), quick_s=1.0)
    setting.gate.open.set()
    setting.submit(0)
    setting.inbox.wait_for(1)
    assert setting.thread.wait_until_idle(TIMEOUT_S)
    return setting


def test_quick_batches_of_many_experts_are_answered_together_and_a_slow_one_waits_for_its_thread():
    setting = that_knows_a_row_to_be_quick()
    setting.queue(1, "ffn0.0")
    setting.queue(2, "ffn0.1")
    setting.queue(3, "ffn0.2", rows=64)  # nothing like it was computed yet

    assert setting.thread.work_here()
    assert set(setting.inbox.outcomes) == {0, 1, 2}
    assert not setting.thread.work_here()

    setting.inbox.wait_for(4)
    assert setting.gate.batches == [1, 1, 1, 64]
    setting.thread.stop()


def test_the_answers_of_what_was_claimed_together_leave_together():
    setting = that_knows_a_row_to_be_quick()
    setting.inbox.num_answered_at_flush.clear()
    for call_id in range(1, 4):
        setting.queue(call_id, f"ffn0.{call_id - 1}")

    assert not setting.thread.work_here()

    assert setting.inbox.num_answered_at_flush == [4]
    setting.thread.stop()


def test_the_data_plane_leaves_a_batch_alone_while_the_device_computes_another():
    setting = Setting(Limits(), quick_s=1.0)
    setting.occupy()
    setting.submit(1)
    assert setting.inbox.outcomes == {}
    setting.gate.open.set()
    setting.inbox.wait_for(1)  # call 0; the thread then leaves call 1, which is a quick one now, to the data plane
    while 1 not in setting.inbox.outcomes:
        setting.thread.work_here()
    assert setting.thread.wait_until_idle(TIMEOUT_S)
    setting.thread.stop()
