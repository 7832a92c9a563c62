"""Which hosts are put aside, for how long, and when they are called again: a clock and figures, no calls."""

import itertools
import logging
from dataclasses import dataclass, field

import pytest
import torch

import learning_at_home as lah
from learning_at_home.client import living
from learning_at_home.client.breaker import (
    DEGRADED_AFTER_S,
    FIRST_TERM_S,
    MAX_TERM_S,
    WINDOW_S,
    Breaker,
    HostFigures,
    Verdict,
)
from tests.learning_at_home.client.small_swarm import FROZEN, layer, twice

TOLERATED_S = 0.25


@dataclass
class Host:
    """Answers `per_s` calls each second with this p95, a share of them failing."""

    p95_s: float | None = 0.1
    failing: float = 0.0
    cells: int = 4
    per_s: int = 100
    calls: int = 0
    failures: float = 0.0


@dataclass
class Layer:
    """Hosts under a breaker that looks once in a second. Those that are put aside are neither called nor looked at."""

    hosts: dict[str, Host]
    breaker: Breaker = field(default_factory=lambda: Breaker(TOLERATED_S, k_min=1))
    now: float = 0.0
    aside: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float) -> list[Verdict]:
        told: list[Verdict] = []
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            figures = {}
            for name, host in self.hosts.items():
                if self.now >= self.aside.get(name, 0.0):
                    host.calls += host.per_s
                    host.failures += host.per_s * host.failing
                    key = name.encode()
                    figures[key] = HostFigures(name, host.cells, host.calls, int(host.failures), host.p95_s)
            cells_aside = sum(host.cells for name, host in self.hosts.items() if self.now < self.aside.get(name, 0.0))
            for verdict in self.breaker.look(figures, self.now, cells_aside):
                told.append(verdict)
                if verdict.until_s is not None:
                    self.aside[verdict.name] = verdict.until_s
        return told


def four(**last: object) -> Layer:
    return Layer({"a": Host(), "b": Host(), "c": Host(), "d": Host(**last)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "last, is_degraded",
    [
        ({"p95_s": 0.41}, True),  # over 4 times 0.1 s
        ({"p95_s": 0.39}, False),
        ({"failing": 0.06}, True),
        ({"failing": 0.05}, False),
        ({"p95_s": 5.0, "per_s": 0}, False),  # of a host that nobody called nobody can say
        ({"p95_s": None, "failing": 1.0}, True),
    ],
)
def test_a_host_is_put_aside_when_it_was_degraded_for_30_seconds(last, is_degraded):
    layer_ = four(**last)

    assert layer_.run(DEGRADED_AFTER_S) == []
    told = layer_.run(2)

    assert [(verdict.name, verdict.until_s) for verdict in told] == (
        [("d", 32.0 + FIRST_TERM_S)] if is_degraded else []
    )
    assert layer_.breaker.circuit(b"d") == ("open" if is_degraded else "closed")


def test_what_is_usual_in_the_layer_is_nobodys_fault():
    all_failing = Layer({name: Host(failing=0.1) for name in "abcd"})
    assert all_failing.run(120) == []
    all_slow = Layer({name: Host(p95_s=5.0) for name in "abcd"})
    assert all_slow.run(120) == []
    quick = Layer({name: Host(p95_s=0.001) for name in "abc"} | {"d": Host(p95_s=0.2)})
    assert quick.run(120) == [], "0.2 s is tolerated, though it is 200 times what the others take"


def test_hosts_that_nobody_calls_are_no_measure():
    assert Layer({"a": Host(failing=0.1), "b": Host(), "c": Host(per_s=0), "d": Host(per_s=0)}).run(120) == []


def test_two_hosts_have_no_median():
    assert Layer({"a": Host(), "b": Host(p95_s=9.0, failing=0.5)}).run(120) == []


def test_a_hiccup_is_forgotten_and_one_near_the_limit_counts_on():
    layer_ = four(p95_s=1.0)
    layer_.run(DEGRADED_AFTER_S - 5)
    layer_.hosts["d"].p95_s = 0.1
    layer_.run(2)
    layer_.hosts["d"].p95_s = 1.0
    assert layer_.run(DEGRADED_AFTER_S - 5) == []

    layer_.hosts["d"].p95_s = 0.3  # below 0.4, not below half of it
    layer_.run(2)
    layer_.hosts["d"].p95_s = 1.0
    assert [verdict.name for verdict in layer_.run(5)] == ["d"]


def test_a_burst_of_failures_is_out_of_the_window_before_it_counts():
    layer_ = four()
    layer_.hosts["d"].failing = 1.0
    layer_.run(2)
    layer_.hosts["d"].failing = 0.0

    assert layer_.run(60) == []
    assert WINDOW_S + 2 < DEGRADED_AFTER_S


def test_the_trial_of_a_host_that_is_still_slow_doubles_its_term_up_to_a_bound():
    layer_ = four(p95_s=1.0)

    told = layer_.run(3_000)

    untils = [verdict.until_s for verdict in told if verdict.until_s is not None]
    terms = [later - earlier - 1 for earlier, later in itertools.pairwise(untils)]
    assert [round(term) for term in terms[:6]] == [60, 120, 240, 480, 480, 480]
    assert {verdict.name for verdict in told} == {"d"}
    assert terms[-1] <= MAX_TERM_S + 1


def test_a_host_that_is_well_on_trial_is_closed_and_its_next_term_is_short_again():
    layer_ = four(p95_s=1.0)
    layer_.run(DEGRADED_AFTER_S + 2)
    layer_.hosts["d"].p95_s = 0.1
    (closed,) = layer_.run(FIRST_TERM_S + 3)
    assert (closed.name, closed.until_s) == ("d", None)
    assert layer_.breaker.circuit(b"d") == "closed"

    layer_.hosts["d"].p95_s = 1.0
    (again,) = layer_.run(DEGRADED_AFTER_S + 2)
    assert again.until_s is not None
    assert again.until_s - layer_.now <= FIRST_TERM_S


def test_a_trial_waits_for_enough_calls():
    layer_ = four(p95_s=1.0)
    layer_.run(DEGRADED_AFTER_S + 2)
    layer_.hosts["d"].per_s = 1

    told = layer_.run(FIRST_TERM_S + 7)

    assert told == []
    assert layer_.breaker.circuit(b"d") == "half open"
    assert [verdict.name for verdict in layer_.run(5)] == ["d"]


def test_half_of_the_experts_stay():
    layer_ = Layer(
        {"a": Host(cells=2), "b": Host(cells=2), "c": Host(cells=2), "d": Host(p95_s=9.0, cells=7)},
    )
    assert layer_.run(120) == [], "7 of 13"
    layer_ = Layer({name: Host() for name in "abc"} | {"d": Host(p95_s=3.0), "e": Host(p95_s=5.0)})
    assert [verdict.name for verdict in layer_.run(DEGRADED_AFTER_S + 3)] == ["e", "d"], "the worst first, one a second"


def test_half_of_the_experts_stay_whichever_layer_puts_their_hosts_aside():
    """Two layers over the same eight hosts, five of them slow: one layer's breaker puts the next aside by turns."""
    slow = {name: Host(p95_s=5.0 * number) for number, name in enumerate("defgh", 1)}
    hosts = {name: Host() for name in "abc"} | slow
    aside: dict[str, float] = {}
    layers = [Layer(hosts, aside=aside), Layer(hosts, aside=aside)]

    fewest = len(hosts)
    for _ in range(600):
        for layer_ in layers:
            layer_.run(1.0)
        fewest = min(fewest, sum(layers[0].now >= aside.get(name, 0.0) for name in hosts))

    assert fewest == 4


def test_hosts_that_left_are_forgotten():
    layer_ = four()
    layer_.run(5)
    layer_.hosts = {"x": Host()}
    layer_.run(MAX_TERM_S + 5)

    assert len(layer_.breaker._hosts) == 1


def test_a_slow_node_is_out_of_the_choice_and_comes_back(small_swarm, monkeypatch, caplog):
    """The breaker's verdict reaches the directory: a node that still answers is in no view for the term."""
    caplog.set_level(logging.INFO)
    swarm = small_swarm(layer((6,), optimizer=FROZEN))
    nodes = [swarm.add_wilful([2 * number, 2 * number + 1], twice) for number in range(3)]
    key = swarm.identities[0].public_key
    clock = swarm.swarm.calls.clock
    until: list[float] = []

    def verdicts(self: Breaker, figures, now: float, cells_aside: int) -> list[Verdict]:
        assert cells_aside == (2 if until else 0)
        if until:
            return []
        assert {its.cells for its in figures.values()} == {2}
        until.append(now + 20.0)
        return [Verdict(key, "calm otter", until[0], "p95 9 s where the others' median is 1 s, 0 % of its calls fail")]

    dmoe = lah.DMoE(swarm.swarm, "ffn0", 6)
    x = torch.randn(4, 6, dtype=torch.float64)
    dmoe(x)
    monkeypatch.setattr(Breaker, "look", verdicts)
    monkeypatch.setattr(living, "JUDGED_EVERY_S", 0.0)
    asked = len(nodes[0].seen)

    dmoe(x)
    swarm.swarm.expert("ffn0.0")(x)  # a lone expert has nobody beside it, and its answer lifts nothing
    dmoe(x)

    assert len(nodes[0].seen) == asked + 1
    assert [suspicion.public_key for suspicion in swarm.directory.suspected(clock.monotonic_s())] == [key]
    assert swarm.directory.suspected(until[0]) == ()
    left_alone_s = {node: its.left_alone_s for node, its in swarm.swarm.stats().nodes.items()}
    assert 10.0 < left_alone_s.pop(key.hex()) <= 20.0
    assert set(left_alone_s.values()) == {0.0}
    assert "calm otter is put aside for 20 s: p95 9 s" in caplog.text
    torch.testing.assert_close(lah.DMoE(swarm.swarm, "ffn0", 1, circuit_breaker=False)(x), 2 * x)
