"""The experiment's mechanics on a tiny size; its promise is for sizes that a test has no time for."""

import json

import pytest

from experiments import failing_calls
from experiments.failing_calls import FailingCalls, Run, main, summary
from learning_at_home.errors import ExpertFailed
from learning_at_home.wire.messages import Work


@pytest.mark.slow
def test_a_tiny_run_fails_its_share_of_calls_and_survives(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(failing_calls, "ALLOWED_LOSS", 1.0)  # a few steps prove nothing about accuracy
    file = tmp_path / "found.json"
    size = ["--steps", "3", "--rows", "32", "--train-rows", "200", "--test-rows", "100"]

    assert main([*size, "--share", "0.2", "--json", str(file)]) == 0

    found = json.loads(file.read_text())
    calm, failing = found["runs"]
    assert (calm["share"], calm["failures"]) == (0.0, 0)
    assert 0 < failing["failures"] < failing["calls"] / 2
    assert failing["given_up"] < failing["failures"], "another try went well for most"
    assert found["failed_share"] == failing["failures"] / failing["calls"]
    assert "mean accuracy" in capsys.readouterr().out


class Admits:
    """What FailingCalls needs of a host."""

    def __init__(self) -> None:
        self.admitted = 0

    def on_work(self, ticket: object, work: object, frames: object) -> None:
        self.admitted += 1


@pytest.mark.parametrize("silent", [False, True])
def test_a_call_that_is_to_fail_is_refused_or_swallowed_and_never_admitted(silent):
    host = Admits()
    failing = FailingCalls(host, 0.3, seed=0, silent=silent)  # type: ignore[arg-type]
    refused = 0
    for number in range(1_000):
        try:
            host.on_work(None, Work(number, "ffn0.0", "forward", ()), [])
        except ExpertFailed:
            refused += 1

    assert failing.failed + host.admitted == 1_000
    assert 250 < failing.failed < 350
    assert refused == (0 if silent else failing.failed)


def test_the_promise_is_about_the_mean_of_the_pairs():
    def run(share: float, accuracy: float) -> Run:
        return Run(0, share, accuracy, accuracy + share / 10, 0.1, 100, int(100 * share), 0, 0, 1.0)

    calm = [run(0.0, 0.90), run(0.0, 0.88)]
    assert summary(calm, [run(0.1, 0.885), run(0.1, 0.88)])["holds"]
    missed = summary(calm, [run(0.1, 0.86), run(0.1, 0.88)])
    assert not missed["holds"]
    assert missed["lost"] == pytest.approx(0.02)
    assert missed["lost_learned"] == pytest.approx(0.01)
    assert missed["lost_spread"] == pytest.approx([0.0, 0.04])
