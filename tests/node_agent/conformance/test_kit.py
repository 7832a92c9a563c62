"""Networks with one fault each, and the finding that names it."""

import itertools
import json
import re
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.project import LayerSpec, OptimizerSpec
from learning_at_home.tools.checks import Check, Status
from node_agent.conformance.kit import examine, passes
from node_agent.conformance.subject import Subject
from node_agent.expert_command import main
from node_agent.experts import architectures
from node_agent.experts.architectures import register_expert

SIZE = 6


class Network(nn.Module):
    """Sound."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.hidden_size, layer.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows)
        return answer


class Normalised(Network):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.norm = nn.BatchNorm1d(layer.hidden_size, track_running_stats=False)

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(self.norm(rows) if len(rows) > 1 else rows)


class Averaging(Network):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.running: Tensor
        self.register_buffer("running", torch.zeros(layer.hidden_size))

    def forward(self, rows: Tensor) -> Tensor:
        self.running.lerp_(rows.detach().mean(0), 0.1)
        return super().forward(rows)


class Wide(Network):
    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows], dim=1)


class Counting(Network):
    calls = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(rows) * self.calls


class Unseeded(Network):
    seeds = itertools.count()

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        nn.init.normal_(self.linear.bias, generator=torch.Generator().manual_seed(next(self.seeds)))


class OwnNumbers(Network):
    numbers = torch.Generator()

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * torch.rand(1, generator=self.numbers, dtype=rows.dtype)


class InPlace(Network):
    def forward(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            rows.mul_(2)
        return super().forward(rows)


class WrongGradient(Network):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows):
            return rows * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(self.Doubled.apply(rows))


class Detached(Network):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows).detach()


class Tied(Network):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.again = nn.Linear(layer.hidden_size, layer.hidden_size)
        self.again.weight = self.linear.weight

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.again(super().forward(rows))
        return answer


class Raising(Network):
    def forward(self, rows: Tensor) -> Tensor:
        raise KeyError("no such row")


class Idle(Network):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.unused = nn.Parameter(torch.zeros(3))


class Costly(Network):
    def forward(self, rows: Tensor) -> Tensor:
        for _ in range(4):
            rows = super().forward(rows)
        return rows


class Weightless(nn.Module):
    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()

    def forward(self, rows: Tensor) -> Tensor:
        return rows


class Quitting(Network):
    def forward(self, rows: Tensor) -> Tensor:
        sys.exit(0)


class Talking(Network):
    def forward(self, rows: Tensor) -> Tensor:
        print("computing")
        return super().forward(rows)


@pytest.fixture
def findings_of() -> Iterator[Callable[[type[nn.Module]], dict[str, Check]]]:
    before = dict(architectures._registry)

    def find(network: type[nn.Module]) -> dict[str, Check]:
        register_expert(network.__name__.lower())(network)
        optimizer = OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=0.5)
        layer = LayerSpec(
            prefix="checked",
            grid=(2,),
            architecture=network.__name__.lower(),
            hidden_size=SIZE,
            optimizer=optimizer,
        )
        return {check.name: check for check in examine(Subject(layer, torch.device("cpu")))}

    yield find
    architectures._registry.clear()
    architectures._registry.update(before)


def test_a_sound_network_passes_with_a_finding_for_each_check(findings_of):
    found = findings_of(Network)

    assert [check for check in found.values() if check.status is not Status.OK] == []
    assert len(found) == 14


@pytest.mark.parametrize(
    "network,check,words",
    [
        (Normalised, "rows", "depends on the rows beside it"),
        (Averaging, "state", "computing changes running"),
        (Wide, "shapes", r"output 0 is float32\[\*, 12\]; it must be float32\[\*, 6\]"),
        (Counting, "determinism", "another answer the second time"),
        (Unseeded, "weights", "two machines would begin with different numbers in linear.bias"),
        (OwnNumbers, "determinism", "another answer the second time"),
        (InPlace, "input", "writes to its input"),
        (WrongGradient, "derivative", "backward says"),
        (Detached, "gradients", "does not depend on the rows"),
        (Tied, "checkpoint", "share memory"),
        (Raising, "shapes", "KeyError: 'no such row'"),
        (Weightless, "weights", "no parameter"),
    ],
)
def test_a_fault_is_a_failure_that_says_what_to_do(findings_of, network, check, words):
    found = findings_of(network)

    assert found[check].status is Status.FAILED, found[check]
    assert re.search(words, found[check].seen)
    assert found[check].fix
    assert not passes(list(found.values()))


@pytest.mark.parametrize("network,check", [(Idle, "gradients"), (Costly, "flop")])
def test_what_only_wastes_is_a_warning(findings_of, network, check):
    found = findings_of(network)

    assert found[check].status is Status.WARNING
    assert passes(list(found.values()))


def test_the_command_shows_a_line_for_each_finding_and_what_to_do(capsys, monkeypatch):
    module = types.ModuleType("my_experts")
    module.Wide = Wide  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_experts", module)
    before = dict(architectures._registry)

    code = main(["check", "my_experts:Wide", "--hidden-size", "6"])
    architectures._registry.clear()
    architectures._registry.update(before)

    told = capsys.readouterr().out.splitlines()
    assert code == 1
    assert told[0].startswith("ok       weights")
    assert told[2].strip().startswith("-> return one tensor like the rows")
    assert told[-1] == "ok: 1, failed: 1"


@pytest.mark.parametrize(
    "target,words",
    [
        ("no_such_module:Thing", "cannot be imported: ModuleNotFoundError"),
        ("json:no_such_thing", "cannot be imported: AttributeError"),
        ("json:__doc__", "no class and no function"),
        ("maxout", "architecture 'maxout' is not installed here; there are: ffn, mlp, nop, parameters, transformer"),
    ],
)
def test_what_cannot_be_found_is_said(target, words, capsys):
    assert main(["check", target]) == 4
    assert words in capsys.readouterr().err


def test_an_architecture_by_its_name_is_checked_as_json(capsys):
    assert main(["check", "mlp", "--hidden-size", "8", "--dtype", "float64", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["layer"]["architecture"], told["layer"]["dtype"]) == (True, "mlp", "float64")


def test_a_network_that_ends_the_process_is_a_failure(findings_of):
    found = findings_of(Quitting)

    assert found["shapes"].status is Status.FAILED
    assert "SystemExit" in found["shapes"].seen


def test_what_a_network_prints_does_not_stand_in_the_json(capsys, monkeypatch):
    monkeypatch.setattr(architectures, "_registry", dict(architectures._registry))
    register_expert("talking")(Talking)

    assert main(["check", "talking", "--hidden-size", "6", "--json"]) == 0

    told = capsys.readouterr()
    assert json.loads(told.out)["ok"]
    assert "computing" in told.err
