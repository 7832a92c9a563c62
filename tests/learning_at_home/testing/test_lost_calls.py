"""Calls lost on the way between a trainer and its nodes."""

import threading
import time
from collections.abc import Sequence

import pytest
import torch

import learning_at_home as lah
from learning_at_home.errors import CallTimeout, ConfigError
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import lost_calls
from learning_at_home.testing.lost_calls import LostCalls
from learning_at_home.transport.calls import Call
from node_agent.testing import LocalSwarm

PROJECT = ProjectRecord(
    id="lost", layers=(LayerSpec(prefix="a", grid=(4,), architecture="nop", hidden_size=8, deadline_s=0.3),)
)


def test_the_share_is_of_calls_whichever_way_they_are_lost():
    lost = LostCalls(0.2, seed=3)
    calls = [Call(f"a.{number % 4}", "forward", (), ()) for number in range(10_000)]
    answered = 0
    for first in range(0, len(calls), 4):
        arriving, never = lost.sends(message := calls[first : first + 4])
        assert sorted(arriving + never, key=message.index) == message
        answered += sum(not lost.loses_reply() for _ in arriving)
    assert lost.calls == 10_000
    assert answered == 10_000 - lost.total
    assert 1_850 < lost.total < 2_150
    assert lost.replies < lost.requests < 1.3 * lost.replies


def test_a_share_must_leave_something():
    with pytest.raises(ConfigError):
        LostCalls(1.0, seed=0)


@pytest.mark.slow
def test_lost_calls_time_out_and_the_rest_is_answered():
    with (
        LocalSwarm(PROJECT, 2, in_process=True) as nodes,
        lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT) as swarm,
    ):
        swarm.wait_until_alive()
        expert, x = swarm.expert("a.0"), torch.randn(3, 8)
        with lost_calls(swarm, share=0.4, seed=2) as lost:
            timeouts = 0
            for _ in range(12):
                try:
                    assert torch.equal(expert(x), x)
                except CallTimeout:
                    timeouts += 1
        assert (lost.calls, lost.total) == (12, timeouts)
        assert lost.requests > 0
        assert lost.replies > 0
        for _ in range(5):
            assert torch.equal(expert(x), x)
        assert lost.calls == 12, "outside of the context nothing is lost or counted"


@pytest.mark.slow
def test_a_layer_loses_some_of_a_messages_calls_and_mixes_the_others():
    with (
        LocalSwarm(PROJECT, 1, in_process=True) as nodes,
        lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT) as swarm,
    ):
        swarm.wait_until_alive()
        layer, x = lah.DMoE(swarm, "a", k_best=4, grace_s=0.05), torch.randn(6, 8)
        with lost_calls(swarm, share=0.3, seed=1) as lost:
            for _ in range(10):
                assert torch.allclose(layer(x), x, atol=1e-6)
        assert lost.calls >= 40
        assert 0 < lost.total < lost.calls
        assert swarm.stats().failures == lost.total


@pytest.mark.slow
@pytest.mark.parametrize("way,times", [("request", 1), ("reply", 1), ("request", 2)])
def test_a_lost_backward_is_sent_again_before_the_deadline_and_applied_once(way, times, monkeypatch):
    layer = LayerSpec(prefix="a", grid=(2,), architecture="mlp", hidden_size=8, deadline_s=4.0)
    project = ProjectRecord(id="lost", layers=(layer,))
    with (
        LocalSwarm(project, 1, in_process=True) as nodes,
        lah.Swarm.connect(bootstrap=nodes.bootstrap, project=project) as swarm,
    ):
        swarm.wait_until_alive()
        experts = lah.DMoE(swarm, "a", k_best=2)
        x = torch.randn(5, 8, requires_grad=True)
        with lost_calls(swarm, share=0.0) as lost:
            y = experts(x)
            still_lost = 2 * times * [True]
            if way == "reply":
                monkeypatch.setattr(lost, "loses_reply", lambda: bool(still_lost) and still_lost.pop())
            else:
                monkeypatch.setattr(lost, "sends", lambda calls: _first_of(calls, still_lost))
            began = time.monotonic()
            y.sum().backward()
            waited_s = time.monotonic() - began
            assert 0.5 * (2**times - 1) <= waited_s < 3.5, "the grace time, and what such a call usually takes, doubled"
        assert x.grad is not None
        assert (x.grad.abs().sum(1) > 0).all()
        stats = swarm.stats()
        assert (stats.retries, stats.zero_gradient_rows, stats.failures) == (2 * times, 0, 0)
        assert [nodes.expert(f"a.{cell}").updates for cell in range(2)] == [1, 1]


@pytest.mark.slow
def test_a_node_that_answers_others_is_not_suspected_for_a_lost_call(monkeypatch):
    with (
        LocalSwarm(PROJECT, 1, in_process=True) as nodes,
        lah.Swarm.connect(bootstrap=nodes.bootstrap, project=PROJECT) as swarm,
    ):
        swarm.wait_until_alive()
        one, other, x = swarm.expert("a.0"), swarm.expert("a.1"), torch.randn(3, 8)

        def suspected() -> int:
            return len(swarm.calls.directory.suspected(swarm.calls.clock.monotonic_s()))

        with lost_calls(swarm, share=0.0) as lost, monkeypatch.context() as patched:
            sent = threading.Event()

            def lose(calls: list[Call]) -> tuple[list[Call], list[Call]]:
                sent.set()
                return [], calls

            patched.setattr(lost, "sends", lose)
            waiting = one.submit(x)
            assert sent.wait(5.0)
            patched.undo()
            other(x)
            with pytest.raises(CallTimeout):
                waiting.result(5.0)
            assert suspected() == 0
            patched.setattr(lost, "sends", lose)
            with pytest.raises(CallTimeout):
                one(x)
            assert suspected() == 1, "nothing was heard of it in all that time"


def _first_of(calls: Sequence[Call], lost: list[bool]) -> tuple[list[Call], list[Call]]:
    """As many are lost as there are left to lose."""
    num_lost = min(len(calls), len(lost))
    del lost[:num_lost]
    return list(calls[num_lost:]), list(calls[:num_lost])
