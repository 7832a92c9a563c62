"""Calls of an event loop: many at once, one message per node and turn, nothing left behind."""

import asyncio
import queue
import threading

import pytest
import torch

from learning_at_home.client import async_calls
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.errors import (
    CallTimeout,
    ExpertFailed,
    NodeOverloaded,
    NonFiniteTensor,
    SpecMismatch,
    UsageError,
)
from tests.faults.gate import until
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer, twice

TIMEOUT_S = 10.0


def rows(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 6, dtype=torch.float64)


def test_many_calls_are_under_way_at_once_and_each_gets_its_own_answer(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0, 1], twice)
    experts = [swarm.swarm.expert(f"ffn0.0.{cell}") for cell in (0, 1)]
    inputs = [rows() for _ in range(40)]

    async def run() -> list[torch.Tensor]:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*(experts[n % 2].acall(x) for n, x in enumerate(inputs)))

    for x, y in zip(inputs, asyncio.run(run()), strict=True):
        assert torch.equal(y, 2 * x)
        assert not y.requires_grad


def test_calls_of_one_turn_go_in_one_message(small_swarm, monkeypatch):
    swarm: SmallSwarm = small_swarm(layer())
    node = swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    taken = []
    take = node.server._take

    def take_and_tell(*message) -> None:
        taken.append(message)
        take(*message)

    monkeypatch.setattr(node.server, "_take", take_and_tell)

    async def run() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(expert.acall(rows()) for _ in range(20)))

    asyncio.run(run())
    assert len(taken) == 2, "a greeting and a request"
    assert len(node.seen) == 20


def test_several_loops_do_not_share_sockets(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()
    right: list[bool] = []

    async def run() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(20):
                right.append(torch.equal(await expert.acall(x), 2 * x))

    threads = [threading.Thread(target=asyncio.run, args=(run(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert right == [True] * 80


def test_submit_gives_a_future_to_any_thread(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    inputs = [rows() for _ in range(10)]
    futures = [expert.submit(x) for x in inputs]
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(TIMEOUT_S), 2 * x)


def test_a_wrong_input_is_refused_before_it_is_sent(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    node = swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    with pytest.raises(SpecMismatch):
        asyncio.run(expert.acall(torch.zeros(1, 5, dtype=torch.float64)))
    with pytest.raises(SpecMismatch):
        expert.submit(torch.zeros(1, 5, dtype=torch.float64)).result(TIMEOUT_S)
    assert not node.seen


def test_a_full_node_is_asked_again(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    refusals = iter([NodeOverloaded("full", retry_after_s=0.01)] * 2)
    swarm.add_wilful([0], lambda work, tensors: next(refusals, None) or twice(work, tensors))
    x = rows()
    assert torch.equal(asyncio.run(swarm.swarm.expert("ffn0.0.0").acall(x)), 2 * x)
    assert swarm.swarm.stats().retries == 2
    assert swarm.swarm.stats().failures == 0


def test_a_silent_node_times_out_and_the_next_call_is_served(small_swarm):
    swarm: SmallSwarm = small_swarm(layer(deadline_s=0.3))
    silent = [True]
    swarm.add_wilful([0], lambda work, tensors: None if silent.pop() else twice(work, tensors))
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()

    async def run() -> torch.Tensor:
        with pytest.raises(CallTimeout):
            await expert.acall(x)
        silent.append(False)
        return await expert.acall(x)

    assert torch.equal(asyncio.run(run()), 2 * x)


def test_a_cancelled_call_harms_no_other(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()

    async def run() -> torch.Tensor:
        given_up = asyncio.ensure_future(expert.acall(x))
        kept = asyncio.ensure_future(expert.acall(x))
        await asyncio.sleep(0)
        given_up.cancel()
        return await kept

    assert torch.equal(asyncio.run(run()), 2 * x)


def test_closing_the_swarm_ends_what_is_under_way(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    node = swarm.add_wilful([0], lambda work, tensors: None)
    expert = swarm.swarm.expert("ffn0.0.0")
    future = expert.submit(rows())
    while not node.seen:
        assert not future.done()
    swarm.swarm.close()
    with pytest.raises(UsageError):
        future.result(TIMEOUT_S)
    with pytest.raises(UsageError):
        expert.submit(rows())


@pytest.fixture
def always_shared(monkeypatch):
    """Every small call of a thread goes over the swarm's own loop, as if many were under way."""
    monkeypatch.setattr(async_calls, "CROWD", 0)


def test_many_threads_share_one_connection_and_each_gets_its_own_answer(small_swarm):
    swarm: SmallSwarm = small_swarm(layer(optimizer=FROZEN))
    host = swarm.add_host([0, 1])
    experts = [swarm.swarm.expert(f"ffn0.0.{cell}") for cell in (0, 1)]
    local = [swarm.local(cell) for cell in (0, 1)]
    together = threading.Barrier(16)
    wrong: list[object] = []

    def call(number: int) -> None:
        torch.manual_seed(number)
        together.wait(TIMEOUT_S)
        for _ in range(10):
            x = rows().requires_grad_()
            y = experts[number % 2](x)
            y.sum().backward()
            same = x.detach().clone().requires_grad_()
            expected = local[number % 2](same)
            expected.sum().backward()
            assert x.grad is not None
            assert same.grad is not None
            if not (torch.allclose(y, expected) and torch.allclose(x.grad, same.grad)):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not wrong
    assert swarm.swarm.stats().calls == 16 * 10 * 2
    assert swarm.swarm.stats().failures == 0
    assert len(host.server._greeted) <= async_calls.CROWD + 2, "connections: the shared one, and a few for themselves"


def test_a_shared_call_has_the_errors_of_any_other(small_swarm, always_shared):
    swarm: SmallSwarm = small_swarm(layer(deadline_s=0.3))
    behaviours = iter(["good", ExpertFailed("no"), NodeOverloaded("full", retry_after_s=0.01)])

    def behave(work, tensors):
        answer = next(behaviours, "good")
        return twice(work, tensors) if answer == "good" else answer

    swarm.add_wilful([0], behave)
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()
    with pytest.raises(NonFiniteTensor):
        expert(torch.full_like(x, torch.nan))
    with pytest.raises(ExpertFailed):
        expert(x)
    assert torch.equal(expert(x), 2 * x)
    assert swarm.swarm.stats().retries == 1


def test_a_shared_call_times_out_at_its_deadline(small_swarm, always_shared):
    swarm: SmallSwarm = small_swarm(layer(deadline_s=0.3))
    swarm.add_wilful([0], lambda work, tensors: None)
    with pytest.raises(CallTimeout, match=r"0\.3"):
        swarm.swarm.expert("ffn0.0.0")(rows())


def test_closing_the_swarm_ends_the_calls_that_threads_share(small_swarm, always_shared):
    swarm: SmallSwarm = small_swarm(layer(deadline_s=30.0))
    node = swarm.add_wilful([0], lambda work, tensors: None)
    expert = swarm.swarm.expert("ffn0.0.0")
    errors: list[Exception] = []

    def call() -> None:
        try:
            expert(rows())
        except UsageError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(node.seen) == 4, "all four are under way")
    swarm.swarm.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(errors) == 4
    with pytest.raises(UsageError):
        expert(rows())


def test_a_value_that_does_not_fit_the_codec_fails_its_own_call_only(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_host([0])
    expert = RemoteExpert(swarm.swarm, "ffn0.0.0", compression="float16")
    good, bad = torch.ones(2, 6, dtype=torch.float64), torch.full((2, 6), 70_000.0, dtype=torch.float64)

    async def run() -> list[object]:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.gather(*(expert.acall(x) for x in (good, bad, good)), return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(second, NonFiniteTensor)
    for answer in (first, third):
        assert isinstance(answer, torch.Tensor)
        torch.testing.assert_close(answer, swarm.local(0)(good), atol=0.01, rtol=0.01)


def test_a_callback_of_submit_may_call_an_expert(small_swarm, always_shared):
    """It runs in the thread of the loop that shared calls need."""
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()
    answers: queue.Queue[torch.Tensor] = queue.Queue()
    expert.submit(x).add_done_callback(lambda future: answers.put(expert(future.result())))
    assert torch.equal(answers.get(timeout=TIMEOUT_S), 4 * x)


def test_what_is_written_to_a_tensor_after_its_call_was_begun_is_not_sent(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    x = rows()
    sent = x.clone()
    task = expert.task("backward", (x, x), expert.holder())
    waiting = swarm.swarm.asynchronous.share(task, 5.0, expert.compression)
    x.zero_()
    result = waiting.wait(TIMEOUT_S)
    assert result is not None
    assert torch.equal(expert.tensor_of(result), 2 * sent)


async def test_what_is_left_of_the_answers_is_seen_to_once_a_turn(small_swarm):
    """Every message and every answer asks for it; were each heeded, the loop would do ever more in a turn."""
    swarm: SmallSwarm = small_swarm(layer())
    calls = swarm.swarm.asynchronous.of_running_loop()
    turns: list[int] = []
    calls._take_in = lambda: turns.append(0)  # type: ignore[method-assign]
    for _ in range(3):
        calls._take_in_later()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(turns) == 1
    calls._take_in_later()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(turns) == 2


def test_a_call_that_was_given_up_is_not_sent(small_swarm):
    swarm: SmallSwarm = small_swarm(layer())
    node = swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    busy, go_on = threading.Event(), threading.Event()

    async def hold_the_loop() -> None:
        busy.set()
        assert go_on.wait(TIMEOUT_S)

    held = swarm.swarm.asynchronous.submit(hold_the_loop())
    assert busy.wait(TIMEOUT_S)
    waiting = swarm.swarm.asynchronous.share(
        expert.task("forward", (rows(),), expert.holder()), 5.0, expert.compression
    )
    assert waiting.wait(0.01) is None
    go_on.set()
    held.result(TIMEOUT_S)
    x = rows()
    assert torch.equal(expert(x), 2 * x)
    assert len(node.seen) == 1
