"""Every registered network: its shape, its flop, its initial weights."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from learning_at_home.errors import ConfigError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from node_agent.experts import architectures
from node_agent.experts.architectures import (
    build_checked,
    build_expert,
    count_parameters,
    flop_per_row,
    register_expert,
    weight_bytes,
)

SIZE = 8
LAYERS = {
    "ffn": LayerSpec(prefix="a", grid=(2,), architecture="ffn", hidden_size=SIZE),
    "ffn on sequences": LayerSpec(prefix="a", grid=(2,), architecture="ffn", hidden_size=SIZE, sequence_length=5),
    "mlp": LayerSpec(prefix="a", grid=(2,), architecture="mlp", hidden_size=SIZE, dtype="float64"),
    "transformer": LayerSpec(prefix="a", grid=(2,), architecture="transformer", hidden_size=128, sequence_length=5),
    "nop": LayerSpec(prefix="a", grid=(2,), architecture="nop", hidden_size=SIZE),
}
UID = ExpertUid("a", (1,))


@pytest.fixture
def registry():
    """The registry as it was, after a test that adds to it."""
    before = dict(architectures._registry)
    yield
    architectures._registry.clear()
    architectures._registry.update(before)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_rows_come_out_in_the_shape_and_dtype_in_which_they_went_in(layer):
    module = build_checked(layer)
    rows = torch.randn(3, *layer.row_shape, dtype=getattr(torch, layer.dtype))

    assert module(rows).shape == rows.shape
    assert module(rows).dtype == rows.dtype


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_row_does_not_depend_on_the_rows_beside_it(layer):
    module = build_expert(layer, "digits", UID)
    rows = torch.randn(4, *layer.row_shape, dtype=getattr(torch, layer.dtype))

    torch.testing.assert_close(module(rows)[2:3], module(rows[2:3]))


@pytest.mark.parametrize("name", ["ffn", "ffn on sequences", "mlp", "nop"])
def test_flop_are_those_of_the_products(name):
    layer = LAYERS[name]
    rows = torch.zeros(1, *layer.row_shape, dtype=getattr(torch, layer.dtype))
    module = build_checked(layer)
    with FlopCounterMode(display=False) as counter:
        module(rows)

    assert flop_per_row(layer) == counter.get_total_flops()


def test_flop_of_a_transformer_are_its_products_and_its_attention():
    size, length = 128, 5

    per_position = 2 * (4 * size**2 + 8 * size**2) + 2 * 2 * length * size

    assert flop_per_row(LAYERS["transformer"]) == length * per_position


@pytest.mark.parametrize(
    "name,parameters",
    [
        ("ffn", (8 * 32 + 32) + 2 * 32 + (32 * 32 + 32) + 2 * 32 + (32 * 8 + 8)),
        ("mlp", (8 * 32 + 32) + (32 * 8 + 8)),
        ("nop", 1),
    ],
)
def test_parameters_are_counted_without_making_them(name, parameters):
    layer = LAYERS[name]

    assert count_parameters(build_checked(layer)) == parameters
    assert weight_bytes(layer) == parameters * (8 if layer.dtype == "float64" else 4)


def test_the_same_cell_gets_the_same_weights_everywhere_and_others_get_others():
    layer = LAYERS["ffn"]
    torch.manual_seed(1)
    first = build_expert(layer, "digits", UID)
    torch.manual_seed(2)
    again = build_expert(layer, "digits", UID)
    neighbour = build_expert(layer, "digits", ExpertUid("a", (0,)))
    elsewhere = build_expert(layer, "letters", UID)

    weights = [next(module.parameters()) for module in (first, again, neighbour, elsewhere)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_making_an_expert_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_expert(LAYERS["ffn"], "digits", UID)
    build_checked(LAYERS["ffn"])

    assert torch.equal(torch.rand(4), expected)


def test_experts_made_by_many_threads_have_the_weights_that_one_thread_gives_them(registry):
    hold = threading.Barrier(4)

    @register_expert("slow")
    class Slow(nn.Module):
        """Draws in two steps, with time for other threads in between."""

        def __init__(self, layer: LayerSpec) -> None:
            super().__init__()
            self.first = nn.Linear(layer.hidden_size, layer.hidden_size)
            time.sleep(0.005)  # lets go of the interpreter's lock: any thread that may run, will
            self.second = nn.Linear(layer.hidden_size, layer.hidden_size)

    layer = LayerSpec(prefix="a", grid=(16,), architecture="slow", hidden_size=SIZE)
    uids = [ExpertUid("a", (cell,)) for cell in range(16)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    alone = [build_expert(layer, "digits", uid).state_dict() for uid in uids]

    def build(uids: list[ExpertUid]) -> list[nn.Module]:
        hold.wait()
        return [build_expert(layer, "digits", uid) for uid in uids]

    with ThreadPoolExecutor(4) as threads:
        made = [module for part in threads.map(build, [uids[n : n + 4] for n in range(0, 16, 4)]) for module in part]

    for module, expected in zip(made, alone, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    layer = LayerSpec(prefix="a", grid=(2,), architecture="maxout")

    with pytest.raises(ConfigError, match=r"no expert architecture 'maxout'.*ffn, mlp, nop, parameters, transformer"):
        build_checked(layer)


def test_a_transformer_without_sequences_is_refused():
    with pytest.raises(ConfigError, match="give it a sequence_length"):
        build_checked(LayerSpec(prefix="a", grid=(2,), architecture="transformer"))


def test_an_architecture_of_ones_own_is_hosted(registry):
    @register_expert("doubling")
    def build_doubling(layer: LayerSpec) -> nn.Module:
        return nn.Linear(layer.hidden_size, layer.hidden_size, bias=False)

    layer = LayerSpec(prefix="a", grid=(2,), architecture="doubling", hidden_size=SIZE)

    assert build_checked(layer)(torch.zeros(1, SIZE)).shape == (1, SIZE)
    assert flop_per_row(layer) == 2 * SIZE * SIZE


def test_a_network_that_changes_the_rows_shape_is_refused_with_both(registry):
    @register_expert("widening")
    def build_widening(layer: LayerSpec) -> nn.Module:
        return nn.Linear(layer.hidden_size, 3)

    layer = LayerSpec(prefix="a", grid=(2,), architecture="widening", hidden_size=SIZE)

    with pytest.raises(ConfigError, match=r"output 0 is float32\[\*, 3\]; it must be float32\[\*, 8\]"):
        build_checked(layer)


def test_two_architectures_of_one_name_are_refused(registry):
    with pytest.raises(ConfigError, match="two expert architectures are called 'ffn'"):
        register_expert("ffn")(lambda layer: nn.Identity())


@pytest.mark.parametrize("when", ["made", "computed"])
def test_whatever_an_architecture_raises_is_told_as_its_layers_fault(registry, when):
    class Odd(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            raise KeyError("rows")

    @register_expert("odd")
    def build_odd(layer: LayerSpec) -> nn.Module:
        if when == "made":
            raise AttributeError("no size")
        return Odd()

    layer = LayerSpec(prefix="a", grid=(2,), architecture="odd", hidden_size=SIZE)

    with pytest.raises(ConfigError, match=r"layer a: odd cannot be made: AttributeError|odd cannot compute.*KeyError"):
        build_checked(layer)
