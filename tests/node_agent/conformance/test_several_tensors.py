"""The conformance kit on networks of several tensors: a sound one, and such with one fault each."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from learning_at_home.project import LayerSpec, OptimizerSpec
from learning_at_home.tools.checks import Check, Status
from node_agent.conformance.kit import examine, passes
from node_agent.conformance.subject import Subject
from node_agent.expert_command import main
from node_agent.experts.architectures import register_expert
from tests.learning_at_home.client.several_tensors import LENGTH, SCHEMA, SCHEMAS, SIZE, MaskedLstm, State, registered

__all__ = ["registered"]
Answer = tuple[Tensor, dict[str, Tensor]]


class Crossing(MaskedLstm):
    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> Answer:
        sequence, rest = super().forward(rows, mask=mask, state=state)
        return sequence, {**rest, "cell": rest["cell"] - rest["cell"].mean(0)}


class Writing(MaskedLstm):
    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> Answer:
        mask.logical_not_()
        return super().forward(rows, mask=mask, state=state)


class Forgetting(MaskedLstm):
    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> Answer:
        return super().forward(rows, mask=mask, state=(state[0] * 0, {"cell": state[1]["cell"].detach()}))


class Detaching(MaskedLstm):
    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> Answer:
        sequence, rest = super().forward(rows, mask=mask, state=state)
        return sequence, {name: value.detach() for name, value in rest.items()}


class Misnaming(MaskedLstm):
    def forward(self, rows: Tensor, *, mask: Tensor, state: State) -> Answer:
        sequence, rest = super().forward(rows, mask=mask, state=state)
        return sequence, {"hidden": rest["hidden"], "cells": rest["cell"]}


def findings(network: type[MaskedLstm] | None, architecture: str = "masked-lstm") -> dict[str, Check]:
    if network is not None:
        architecture = "faulty"
        register_expert(architecture)(network)
    layer = LayerSpec(
        prefix="checked",
        grid=(2,),
        architecture=architecture,
        hidden_size=SIZE,
        schema=SCHEMAS.get(architecture, SCHEMA),
        optimizer=OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=0.5),
    )
    return {finding.name: finding for finding in examine(Subject(layer, torch.device("cpu")))}


@pytest.mark.parametrize("architecture", ["masked-lstm", "embedding", "scaled"])
def test_a_sound_network_of_several_tensors_passes(architecture: str) -> None:
    found = findings(None, architecture)
    assert passes(list(found.values())), found
    assert {"shapes", "rows", "recomputation", "gradients", "derivative", "clipping", "checkpoint", "memory"} <= set(
        found
    )
    assert "several tensors" in found["clipping"].seen
    assert SCHEMAS[architecture] in found["shapes"].seen


@pytest.mark.parametrize(
    "network, name, said",
    [
        (Crossing, "rows", "depends on the rows beside it"),
        (Writing, "input", "writes to its input"),
        (Forgetting, "gradients", r"input state.0 gets no gradient"),
        (Detaching, "gradients", r"output 1.hidden does not depend on the rows"),
        (Misnaming, "shapes", "the output.1 has hidden, cells instead of hidden, cell"),
    ],
)
def test_the_fault_is_found_and_named(network: type[MaskedLstm], name: str, said: str) -> None:
    finding = findings(network)[name]
    assert finding.status is Status.FAILED
    assert said in finding.seen


def test_the_command_takes_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    target = "tests.learning_at_home.client.several_tensors:MaskedLstm"
    assert main(["check", target, "--hidden-size", str(SIZE), "--schema", SCHEMA, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layer"]["schema"] == SCHEMA
    assert main(["check", target, "--schema", f"(float[{LENGTH}]) -> int64[1]"]) == 4
    assert "outputs are float" in capsys.readouterr().err
