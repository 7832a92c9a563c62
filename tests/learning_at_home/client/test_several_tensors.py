"""Experts of several tensors: the same numbers as the local module and the local mixture, in float64, on real nodes."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.gating import GatingFunction
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.switch_dmoe import SwitchDMoE
from learning_at_home.errors import (
    BatchTooLarge,
    ConfigError,
    EmptyBatch,
    ExpertFailed,
    NonFiniteTensor,
    SpecMismatch,
)
from learning_at_home.project import LayerSpec
from node_agent.runtime.host import Host
from tests.learning_at_home.client.several_tensors import LENGTH, SIZE, draw, floats_of, registered, several
from tests.learning_at_home.client.small_swarm import FROZEN, SmallSwarm, layer

__all__ = ["registered"]
Make = Callable[[LayerSpec], SmallSwarm]


def loss_of(outputs: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    sequence, state = outputs
    return (sequence.square() * 0.5).sum() + (state["hidden"] * 2).sum() + state["cell"].pow(3).sum()


def swarm_of(small_swarm: Make, spec: LayerSpec) -> tuple[SmallSwarm, list[Host]]:
    swarm = small_swarm(spec)
    cells = range(spec.cells.num_cells)
    return swarm, [swarm.add_host(cells[::2]), swarm.add_host(cells[1::2])] if len(cells) > 1 else [swarm.add_host([0])]


def test_outputs_gradients_and_the_update_are_those_of_the_local_module(small_swarm: Make) -> None:
    swarm, hosts = swarm_of(small_swarm, several(grid=(1,)))
    expert, local = RemoteExpert(swarm.swarm, "ffn0.0"), swarm.local(0)
    ours, theirs = draw(5), draw(5)
    outputs = expert(ours[0], mask=ours[1], state=ours[2])
    expected = local(theirs[0], mask=theirs[1], state=theirs[2])

    assert type(outputs) is tuple
    assert list(outputs[1]) == ["hidden", "cell"]
    torch.testing.assert_close(outputs[0], expected[0])
    torch.testing.assert_close(outputs[1], expected[1])
    loss_of(outputs).backward()
    loss_of(expected).backward()
    for own, other in zip(floats_of(ours), floats_of(theirs), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    torch.optim.SGD(local.parameters(), lr=0.1).step()
    trained = hosts[0].experts.find("ffn0.0")
    assert trained.updates == 1
    for parameter, own_parameter in zip(trained.module.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(parameter, own_parameter)


def local_mixture(dmoe: DMoE, swarm: SmallSwarm, drawn: tuple[Tensor, Tensor, object], gated: Tensor) -> object:
    """Every expert on every row, in the softmax of all scores: k_best is the whole grid."""
    weights_RC = copy.deepcopy(dmoe.gate).line_scores(gated).softmax(1)
    rows, mask, state = drawn
    found = [swarm.local(cell)(rows, mask=mask, state=state) for cell in range(weights_RC.shape[1])]
    return (
        sum(w.view(-1, 1, 1) * sequence for w, (sequence, _) in zip(weights_RC.unbind(1), found, strict=True)),
        {
            name: sum(w.view(-1, 1) * rest[name] for w, (_, rest) in zip(weights_RC.unbind(1), found, strict=True))
            for name in ("hidden", "cell")
        },
    )


@pytest.mark.parametrize("gate_on", [None, "state.0"])
def test_a_layer_mixes_every_output_by_the_gates_weights(small_swarm: Make, gate_on: str | None) -> None:
    swarm, _ = swarm_of(small_swarm, several())
    dmoe = DMoE(swarm.swarm, "ffn0", 3, gate_on=gate_on)
    ours, theirs = draw(6), draw(6)
    outputs = dmoe(ours[0], mask=ours[1], state=ours[2])
    expected = local_mixture(dmoe, swarm, theirs, theirs[0] if gate_on is None else theirs[2][0])

    torch.testing.assert_close(outputs[0], expected[0])  # type: ignore[index]
    torch.testing.assert_close(outputs[1], expected[1])  # type: ignore[index]
    loss_of(outputs).backward()
    loss_of(expected).backward()  # type: ignore[arg-type]
    for own, other in zip(floats_of(ours), floats_of(theirs), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_the_gates_gradient_is_that_of_the_local_mixture(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(optimizer=FROZEN))
    dmoe = DMoE(swarm.swarm, "ffn0", 3)
    drawn = draw(6)
    twin = copy.deepcopy(dmoe)
    loss_of(dmoe(drawn[0], mask=drawn[1], state=drawn[2])).backward()
    gate = copy.deepcopy(twin.gate)
    twin.gate = gate
    weights_RC = gate.line_scores(drawn[0]).softmax(1)
    found = [swarm.local(cell)(drawn[0], mask=drawn[1], state=drawn[2]) for cell in range(3)]
    mixed = torch.einsum("rc,crls->rls", weights_RC, torch.stack([sequence for sequence, _ in found]))
    states = {
        name: torch.einsum("rc,crs->rs", weights_RC, torch.stack([r[name] for _, r in found])) for name in found[0][1]
    }
    loss_of((mixed, states)).backward()
    for ours, theirs in zip(dmoe.gate.parameters(), gate.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", ["expert", "layer"])
def test_gradcheck_passes_with_frozen_experts(small_swarm: Make, kind: str) -> None:
    swarm, _ = swarm_of(small_swarm, several(grid=(2,), optimizer=FROZEN, deadline_s=20.0))
    module = RemoteExpert(swarm.swarm, "ffn0.1") if kind == "expert" else DMoE(swarm.swarm, "ffn0", 2)
    rows, mask, (hidden, rest) = draw(1)

    def function(rows: Tensor, hidden: Tensor, cell: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        sequence, state = module(rows, mask=mask, state=[hidden, {"cell": cell}])
        return sequence, state["hidden"], state["cell"]

    assert torch.autograd.gradcheck(function, (rows, hidden, rest["cell"], *module.parameters()))


def test_rows_in_several_dimensions_come_back_in_them(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(optimizer=FROZEN))
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    rows, mask, (hidden, rest) = draw(2, 3)
    sequence, state = dmoe(rows, mask=mask, state=(hidden, rest))
    flat, flat_state = dmoe(
        rows.flatten(0, 1), mask=mask.flatten(0, 1), state=(hidden.flatten(0, 1), {"cell": rest["cell"].flatten(0, 1)})
    )
    assert sequence.shape == (2, 3, LENGTH, SIZE)
    torch.testing.assert_close(sequence.flatten(0, 1), flat)
    torch.testing.assert_close(state["cell"].flatten(0, 1), flat_state["cell"])
    with pytest.raises(SpecMismatch, match=r"input mask is bool\[3, 2, 3\]; the expert takes bool\[\*, 3\]"):
        dmoe(rows, mask=mask.transpose(0, 1), state=(hidden, rest))


def test_an_output_that_no_loss_needs_counts_as_zeros(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(grid=(1,), optimizer=FROZEN))
    ours, theirs = draw(4), draw(4)
    RemoteExpert(swarm.swarm, "ffn0.0")(ours[0], mask=ours[1], state=ours[2])[1]["hidden"].sum().backward()
    swarm.local(0)(theirs[0], mask=theirs[1], state=theirs[2])[1]["hidden"].sum().backward()
    for own, other in zip(floats_of(ours), floats_of(theirs), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_what_does_not_fit_is_refused_by_its_path_before_anything_is_sent(small_swarm: Make) -> None:
    swarm, (host, *_) = swarm_of(small_swarm, several())
    rows, mask, state = draw(4)
    wrong: list[tuple[type[Exception], str, object, object, object]] = [
        (
            SpecMismatch,
            r"input mask is bool\[4, 4\]; the expert takes bool\[\*, 3\]",
            rows,
            mask[:, [0, 0, 0, 0]],
            state,
        ),
        (SpecMismatch, r"input mask is int64\[4, 3\]", rows, mask.long(), state),
        (SpecMismatch, r"input mask is a list; .* as a torch.Tensor", rows, mask.tolist(), state),
        (SpecMismatch, r"input state.0 is float32\[4, 4\]", rows, mask, (state[0].float(), state[1])),
        (
            SpecMismatch,
            r"input state.1.cell .* of 3 rows; input 0 has 4",
            rows,
            mask,
            (state[0], {"cell": state[0][:3]}),
        ),
        (SpecMismatch, "input state is a Tensor instead of 2 values", rows, mask, state[0]),
        (SpecMismatch, r"input 0 is float64\[\]", torch.zeros((), dtype=torch.float64), mask, state),
        (EmptyBatch, "no rows", rows[:0], mask[:0], (state[0][:0], {"cell": state[0][:0]})),
    ]
    for module in (RemoteExpert(swarm.swarm, "ffn0.0"), DMoE(swarm.swarm, "ffn0", 2)):
        for error, said, *values in wrong:
            with pytest.raises(error, match=f"ffn0.*{said}"):
                module(values[0], mask=values[1], state=values[2])
        with pytest.raises(SpecMismatch, match="input mask is missing"):
            module(rows, state=state)
    many, big = torch.zeros(4097, LENGTH, SIZE, dtype=torch.float64), torch.zeros(4097, SIZE, dtype=torch.float64)
    expert = RemoteExpert(swarm.swarm, "ffn0.0")
    with pytest.raises(BatchTooLarge, match="4,096"):
        expert(many, mask=torch.zeros(4097, LENGTH, dtype=torch.bool), state=(big, {"cell": big}))
    assert host.statistics.rows == 0


def test_a_number_that_is_not_finite_is_told_by_its_path(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several())
    rows, mask, (hidden, rest) = draw(4)
    spoilt = hidden.detach().clone()
    spoilt[1, 2] = torch.nan
    for module in (RemoteExpert(swarm.swarm, "ffn0.0"), DMoE(swarm.swarm, "ffn0", 2)):
        with pytest.raises(NonFiniteTensor, match=r"input state.0 \(float64\[4, 4\]\)"):
            module(rows, mask=mask, state=(spoilt, rest))


def test_several_to_a_layer_of_one_are_refused(small_swarm: Make) -> None:
    swarm = small_swarm(layer((1,)))
    swarm.add_host([0])
    x = torch.randn(2, 6, dtype=torch.float64)
    for module in (RemoteExpert(swarm.swarm, "ffn0.0"), DMoE(swarm.swarm, "ffn0", 1)):
        with pytest.raises(SpecMismatch, match="takes one tensor, x; 1 positional and 1 named inputs came"):
            module(x, mask=x)
        assert torch.equal(module(x=x), module(x))


def test_whole_numbers_alone_train_an_expert_without_a_gradient_of_theirs(small_swarm: Make) -> None:
    swarm, (host, *_) = swarm_of(small_swarm, several("embedding", grid=(1,)))
    expert, local = RemoteExpert(swarm.swarm, "ffn0.0"), swarm.local(0)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 9]])
    y, expected = expert(tokens), local(tokens)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.optim.SGD(local.parameters(), lr=0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(expert(tokens), local(tokens))
    assert host.experts.find("ffn0.0").updates == 1
    with pytest.raises(ExpertFailed, match="index out of range"):
        expert(tokens + 5)
    with pytest.raises(ConfigError, match="a gate can score none of its inputs, 0"):
        DMoE(swarm.swarm, "ffn0")


def test_asynchronous_calls_take_several_tensors(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(grid=(1,)))
    expert = RemoteExpert(swarm.swarm, "ffn0.0")
    rows, mask, state = draw(3)
    with torch.no_grad():
        expected = expert(rows, mask=mask, state=state)
    for outputs in (
        asyncio.run(expert.acall(rows, mask=mask, state=state)),
        expert.submit(rows, mask=mask, state=state).result(10.0),
    ):
        assert torch.equal(outputs[0], expected[0])
        assert torch.equal(outputs[1]["cell"], expected[1]["cell"])


def test_codecs_change_floats_alone(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(grid=(1,), optimizer=FROZEN))
    drawn = draw(5)
    exact = RemoteExpert(swarm.swarm, "ffn0.0")(drawn[0], mask=drawn[1], state=drawn[2])
    near = RemoteExpert(swarm.swarm, "ffn0.0", compression="int8")(drawn[0], mask=drawn[1], state=drawn[2])
    assert not torch.equal(near[0], exact[0])
    torch.testing.assert_close(near[0], exact[0], atol=0.05, rtol=0.05)


def test_a_converted_model_converts_the_floats_and_nothing_else(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several(grid=(1,), optimizer=FROZEN))
    expert = RemoteExpert(swarm.swarm, "ffn0.0")
    rows, mask, (hidden, rest) = draw(3)
    expected = expert(rows, mask=mask, state=(hidden, rest))
    single = expert.float()(rows.float(), mask=mask, state=(hidden.float(), {"cell": rest["cell"].float()}))
    assert single[0].dtype == single[1]["hidden"].dtype == torch.float32
    torch.testing.assert_close(single[0].double(), expected[0], atol=1e-6, rtol=1e-5)


def test_switching_and_passing_need_an_output_like_the_gated_input(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several())
    with pytest.raises(ConfigError, match="SwitchDMoE needs experts with one output like the input"):
        SwitchDMoE(swarm.swarm, "ffn0")
    with pytest.raises(ConfigError, match="on_missing='pass' needs experts with one output"):
        DMoE(swarm.swarm, "ffn0", on_missing="pass")
    for path, said in (
        ("mask", r"is bool\[\*, 3\]; a gate takes floats"),
        ("state", "none of its inputs, 0, mask, state.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            DMoE(swarm.swarm, "ffn0", gate_on=path)
    with pytest.raises(SpecMismatch, match="takes 4 features, not in_features=6"):
        DMoE(swarm.swarm, "ffn0", in_features=6)

    scaled, _ = swarm_of(small_swarm, several("scaled", grid=(2,), optimizer=FROZEN))
    rows = torch.randn(5, SIZE, dtype=torch.float64)
    factor, use = torch.rand(5, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)
    switch = SwitchDMoE(scaled.swarm, "ffn0").eval()
    y = switch(rows, factor=factor, use=use)
    chances_RC = switch.gate.line_scores(rows).softmax(1)
    best_R = chances_RC.argmax(1)
    every = torch.stack([scaled.local(cell)(rows, factor, use) for cell in range(2)])
    chosen = every[best_R, torch.arange(5)]
    chance_R1 = chances_RC.gather(1, best_R.unsqueeze(1))
    torch.testing.assert_close(y, rows + chance_R1 * (chosen - rows))


def test_a_gate_alone_chooses_by_the_gated_input(small_swarm: Make) -> None:
    swarm, _ = swarm_of(small_swarm, several())
    gate = GatingFunction.of_layer(swarm.swarm, "ffn0", 2, gate_on="state.0")
    assert gate.in_features == SIZE
    assert len(gate(draw(4)[2][0]).uids) == 4


def test_a_masked_recurrent_layer_learns_to_remember(small_swarm: Make) -> None:
    """The sign of the first number that the mask lets through, told by the last hidden state."""
    swarm, hosts = swarm_of(small_swarm, several(grid=(2,), deadline_s=20.0))
    dmoe, head = DMoE(swarm.swarm, "ffn0", 2), torch.nn.Linear(SIZE, 1).double()
    optimizer = torch.optim.Adam([*dmoe.parameters(), *head.parameters()], lr=0.1)
    rows = draw(64, seed=1)[0].detach()
    mask = torch.zeros(64, LENGTH, dtype=torch.bool)
    mask[torch.arange(64), torch.arange(64) % LENGTH] = True
    wanted = (rows[mask][:, 0] > 0).double()
    zeros = torch.zeros(64, SIZE, dtype=torch.float64)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        _, state = dmoe(rows, mask=mask, state=(zeros, {"cell": zeros}))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(state["hidden"]).squeeze(1), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert sum(expert.updates for host in hosts for expert in host.experts.by_uid.values()) == 60
