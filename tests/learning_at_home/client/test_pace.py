"""What is expected of hosts, by their answers and hints, and how the choice may take it into account."""

import pytest
import torch

import learning_at_home as lah
from learning_at_home.client.pace import FORGET_HALF_S, Paces
from learning_at_home.testing import ManualClock
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer, twice


@pytest.fixture
def hosts(small_swarm) -> SmallSwarm:
    """Cells 0 and 1 of one host, 2 and 3 of one each."""
    swarm: SmallSwarm = small_swarm(layer((4,), optimizer=FROZEN))
    for cells in ([0, 1], [2], [3]):
        swarm.add_wilful(cells, twice)
    return swarm


def told(swarm: SmallSwarm, number: int, seconds: float, now: float, load_ms: float = 0.0) -> None:
    swarm.swarm.calls.stats.answered(swarm.identities[number].public_key, "", 1, seconds, now, load_ms)


def paces_at(swarm: SmallSwarm, now: float) -> Paces:
    calls = swarm.swarm.calls
    clock = ManualClock(monotonic_s=now)
    return Paces(type(calls)("test", calls.connections, calls.directory, calls.stats, clock, calls.tracing))


def test_the_expected_time_is_the_mean_or_the_wait_that_was_told_and_fades_to_the_median(hosts):
    view, index = hosts.swarm.living("ffn0").now()
    told(hosts, 0, 0.1, now=100.0)
    told(hosts, 1, 0.5, now=100.0, load_ms=2_000.0)

    assert paces_at(hosts, 100.0).expected_s(view, index).tolist() == pytest.approx([0.1, 0.1, 2.0, 0.3])
    assert paces_at(hosts, 101.0).expected_s(view, index)[2] == pytest.approx(1.0)
    after = paces_at(hosts, 100.0 + FORGET_HALF_S).expected_s(view, index)
    assert after.tolist() == pytest.approx([0.2, 0.2, 0.4, 0.3])


def test_answers_tell_a_hosts_load(hosts):
    hosts.nodes[1].load_ms = 2_000.0
    x = torch.randn(3, 6, dtype=torch.float64)

    lah.DMoE(hosts.swarm, "ffn0", 4)(x)

    paces = [hosts.swarm.calls.stats.pace(identity.public_key) for identity in hosts.identities]
    assert [pace and pace.load_s for pace in paces] == [0.0, 2.0, 0.0]
    assert all(pace is not None and 0 < pace.mean_s < 5.0 for pace in paces)


def test_nothing_is_expected_where_nobody_has_answered(hosts):
    view, index = hosts.swarm.living("ffn0").now()

    assert paces_at(hosts, 0.0).expected_s(view, index).tolist() == [0.0] * 4
    assert paces_at(hosts, 0.0).capacity(view, index, 6.0).tolist() == [2] * 4


def test_capacity_is_divided_by_what_the_hosts_have_still_to_do(hosts):
    view, index = hosts.swarm.living("ffn0").now()
    told(hosts, 0, 1.0, now=100.0)
    told(hosts, 1, 1.0, now=100.0, load_ms=3_000.0)

    assert paces_at(hosts, 100.0).capacity(view, index, 26.0).tolist() == [8, 8, 2, 8]
    assert paces_at(hosts, 102.0).capacity(view, index, 35.0).tolist() == [10, 10, 5, 10]
    assert paces_at(hosts, 100.0).capacity(view, index, 27.0).sum() >= 27


def test_a_layer_that_weighs_latency_chooses_faster_hosts_and_mixes_by_the_scores_alone(hosts):
    dmoe = lah.DMoE(hosts.swarm, "ffn0", 2, latency_weight=4.0)
    plain = lah.DMoE(hosts.swarm, "ffn0", 2)
    with torch.no_grad():
        for layer_ in (dmoe, plain):
            layer_.gate.lines.weight.zero_()
            layer_.gate.lines.bias.copy_(torch.tensor([2.0, 0.0, 3.0, 1.0]))
    hosts.nodes[0].behaviour = lambda work, tensors: tensors[-1] * (2.0 if work.uid == "ffn0.0" else 3.0)
    now = hosts.swarm.calls.clock.monotonic_s()
    for number, seconds in enumerate((0.0, 5.0, 5.0)):
        told(hosts, number, seconds, now)
    x = torch.randn(3, 6, dtype=torch.float64)

    y = dmoe(x)

    weights = torch.tensor([2.0, 0.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(y, x * (weights * torch.tensor([2.0, 3.0])).sum())
    assert not hosts.nodes[1].seen
    plain(x)
    assert hosts.nodes[1].seen
    assert "latency_weight=4" in repr(dmoe)
