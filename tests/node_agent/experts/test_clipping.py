"""Requests clipped each on its own in one backward: what one at a time gives."""

from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts import clipping
from node_agent.experts.clipping import gradients_together
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import Gradients, total_norm

CPU = torch.device("cpu")
UID = ExpertUid("a", (0,))
SIZE = 8
LAYERS = {
    "ffn": LayerSpec(prefix="a", grid=(2,), hidden_size=SIZE, dtype="float64"),
    "large ffn": LayerSpec(prefix="a", grid=(2,), hidden_size=64, dtype="float64"),
    "ffn on sequences": LayerSpec(prefix="a", grid=(2,), hidden_size=SIZE, sequence_length=5, dtype="float64"),
    "mlp": LayerSpec(prefix="a", grid=(2,), architecture="mlp", hidden_size=SIZE, dtype="float64"),
    "transformer": LayerSpec(
        prefix="a", grid=(2,), architecture="transformer", hidden_size=SIZE, sequence_length=5, dtype="float64"
    ),
}
SIZES = {"one row each": [1] * 6, "equal": [3] * 4, "different": [1, 1, 2, 3, 4, 7, 20], "unsorted": [5, 1, 3]}


class Shares(nn.Module):
    """Uses one Linear twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE, dtype=torch.float64)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(self.linear(rows))
        return answer


class Reaches(Shares):
    """Uses the weight of its Linear beside it, too."""

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows) + rows @ self.linear.weight
        return answer


class Overwrites(Shares):
    """Changes a Linear's output in place."""

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows).relu_()
        return answer


class Scales(Shares):
    """Has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(SIZE, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows) * self.scale
        return answer


class Leaves(Scales):
    """The same, unused."""

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.linear(rows)
        return answer


class Counts(Shares):
    """Takes its rows as one matrix of half as many."""

    def forward(self, rows: Tensor) -> Tensor:
        if len(rows) % 2:
            raise ZeroDivisionError("odd")
        answer: Tensor = self.linear(rows)
        return answer


def made_requests(layer: LayerSpec, sizes: list[int], scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    def draw(rows: int) -> Tensor:
        return torch.randn(rows, *layer.row_shape, dtype=getattr(torch, layer.dtype))

    return [(draw(rows), draw(rows) * scale) for rows in sizes]


def one_at_a_time(expert: Expert, requests: list[tuple[Tensor, Tensor]]) -> tuple[Gradients, list[float]]:
    alone = [expert.gradients(*request) for request in requests]
    norms = [found.norm for found in alone]
    of_rows = torch.cat([found.of_rows for found in alone])
    total = reduce(Gradients.plus, [found.clipped(expert.clip_norm) for found in alone])
    return Gradients(of_rows, total.of_parameters, total.norm), norms


def together(expert: Expert, requests: list[tuple[Tensor, Tensor]]) -> Gradients | None:
    rows, gradient = (torch.cat(parts) for parts in zip(*requests, strict=True))
    return gradients_together(expert, rows, gradient, [len(rows) for rows, _ in requests])


def assert_equal(ours: Gradients, theirs: Gradients, rtol: float = 1e-9) -> None:
    sizes = theirs.of_rows.abs().amax(
        dim=1, keepdim=True
    )  # a small number of a large row is a difference of large ones
    torch.testing.assert_close(ours.of_rows / sizes, theirs.of_rows / sizes, rtol=rtol, atol=rtol)
    for one, other in zip(ours.of_parameters, theirs.of_parameters, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_together_is_what_one_at_a_time_gives(layer, sizes):
    expert = Expert.create(UID, layer, "digits", CPU)
    requests = made_requests(layer, sizes)
    _, norms = one_at_a_time(expert, requests)
    expert.clip_norm = sorted(norms)[len(norms) // 2]  # some are clipped, some not

    found = together(expert, requests)

    assert found is not None
    assert_equal(found, one_at_a_time(expert, requests)[0])
    assert total_norm(found.of_parameters) <= found.norm * (1 + 1e-9)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_where_a_bound_shows_that_nothing_is_clipped_no_norm_is_measured(layer, sizes, monkeypatch):
    expert = Expert.create(UID, layer, "digits", CPU)
    requests = made_requests(layer, sizes)
    assert together(expert, requests) is not None  # tried
    expert.clip_norm = 100 * max(one_at_a_time(expert, requests)[1])
    monkeypatch.setattr(clipping.Share, "norms", lambda self: pytest.fail("measured"))

    found = together(expert, requests)

    assert found is not None
    expected = one_at_a_time(expert, requests)[0]
    assert_equal(found, expected)
    assert expected.norm <= found.norm * (1 + 1e-9)  # of each request, its bound


@pytest.mark.parametrize("scale", [1e-9, 1e9, 1e25])
def test_a_gradient_of_any_size_is_clipped_right_in_float32(scale):
    layer = LayerSpec(prefix="a", grid=(2,), hidden_size=64)
    expert = Expert.create(UID, layer, "digits", CPU)
    requests = made_requests(layer, [2, 3, 2])
    requests[1] = (requests[1][0], requests[1][1] * scale)

    found = together(expert, requests)

    if found is not None:  # else one at a time is what is done
        assert_equal(found, one_at_a_time(expert, requests)[0], rtol=1e-4)
    assert (found is None) == (scale == 1e25)  # its squares are no float32 numbers


def test_numbers_that_cancel_out_cannot_get_around_the_clipping():
    """Two opposite rows: what is left of their gradient is below the precision of its estimate."""
    layer = LayerSpec(prefix="a", grid=(2,), architecture="mlp", hidden_size=64)
    expert = Expert.create(UID, layer, "digits", CPU)
    (row, gradient), *others = made_requests(layer, [1, 2, 2])
    sly = (torch.cat([row, row]), torch.cat([gradient, -gradient * (1 + 1e-7)]) * 1e16)

    found = together(expert, [sly, *others])

    assert found is None or total_norm(found.of_parameters) <= 3.01


@pytest.mark.parametrize("network", [Shares, Reaches, Overwrites, Scales, Counts])
def test_networks_that_it_does_not_fit_are_left_to_one_at_a_time(network):
    layer = LAYERS["mlp"]
    expert = Expert(UID, layer, network(), CPU)

    assert together(expert, made_requests(layer, [2, 2])) is None


def test_a_parameter_that_nothing_uses_is_no_hindrance():
    layer = LAYERS["mlp"]
    expert = Expert(UID, layer, Leaves(), CPU)
    requests = made_requests(layer, [2, 3])

    found = together(expert, requests)

    assert found is not None
    assert_equal(found, one_at_a_time(expert, requests)[0])


def test_a_network_without_gradients_needs_no_clipping():
    layer = LayerSpec(prefix="a", grid=(2,), architecture="nop", hidden_size=SIZE)
    expert = Expert.create(UID, layer, "digits", CPU)
    requests = made_requests(layer, [2, 3])

    found = together(expert, requests)

    assert found is not None
    assert torch.equal(found.of_rows, torch.cat([gradient for _, gradient in requests]))
    assert found.of_parameters == (None,)


def test_a_kind_of_network_is_tried_once(monkeypatch):
    layer = LayerSpec(prefix="tried", grid=(2,), architecture="mlp", hidden_size=SIZE)
    tried: list[Expert] = []

    def trial(expert: Expert) -> clipping.Trial:
        tried.append(expert)
        return clipping.Trial.FAILS

    monkeypatch.setattr(clipping, "_try", trial)
    experts = [Expert.create(ExpertUid("tried", (cell,)), layer, "digits", CPU) for cell in range(2)]

    for expert in (*experts, *experts):
        assert together(expert, made_requests(layer, [1, 1])) is None

    assert tried == experts[:1]


def test_the_hooks_are_gone_afterwards():
    expert = Expert.create(UID, LAYERS["ffn"], "digits", CPU)

    together(expert, made_requests(LAYERS["ffn"], [2, 2]))

    assert not any(module._forward_hooks for module in expert.module.modules())


def test_the_value_of_a_chains_last_linear_is_not_computed_unless_somebody_looks(monkeypatch):
    layer = LAYERS["mlp"]
    expert = Expert.create(UID, layer, "digits", CPU)
    assert isinstance(expert.module, nn.Sequential)
    last = expert.module[-1]
    requests = made_requests(layer, [2, 3])
    together(expert, requests)  # its kind is tried now
    computed: list[nn.Linear] = []
    forward = nn.Linear.forward

    def counted(linear: nn.Linear, rows: Tensor) -> Tensor:
        computed.append(linear)
        return forward(linear, rows)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    found = together(expert, requests)
    assert computed == [expert.module[0]]

    seen: list[nn.Module] = []
    with last.register_forward_hook(lambda module, into, out: seen.append(module)):
        looked_at = together(expert, requests)
    assert seen == [last]
    assert found is not None
    assert looked_at is not None
    assert_equal(found, looked_at)


def test_an_output_gradient_of_another_shape_is_left_to_one_at_a_time():
    expert = Expert.create(UID, LAYERS["mlp"], "digits", CPU)
    rows = torch.randn(3, SIZE, dtype=torch.float64)

    assert gradients_together(expert, rows, torch.randn(3, 1, dtype=torch.float64), [1, 2]) is None


def test_requests_of_one_size_are_padded_to_no_more_than_twice_their_rows():
    sizes = [1, 1, 2, 3, 3, 4, 5, 8, 8, 100]
    values = torch.randn(sum(sizes), 2, 3)

    padded = [block.pad(values) for block in clipping._blocks(sizes)]

    assert [tuple(block.shape) for block in padded] == [(2, 2, 3), (1, 4, 3), (3, 8, 3), (3, 16, 3), (1, 200, 3)]
    assert sum(block.numel() for block in padded) <= 2 * values.numel()
    assert sum(float(block.sum()) for block in padded) == pytest.approx(float(values.sum()), abs=1e-3)


def test_without_a_limit_nothing_is_clipped_together():
    layer = LayerSpec(prefix="a", grid=(2,), hidden_size=SIZE, optimizer=OptimizerSpec(clip_norm=None))
    expert = Expert.create(UID, layer, "digits", CPU)

    assert together(expert, made_requests(layer, [1, 1])) is None
