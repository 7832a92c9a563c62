"""What an expert may be made of: networks by name, each from one LayerSpec.

Knows shapes and flop; knows nothing of optimizers, requests or devices. A network maps rows to rows of the same shape
and dtype, or what its layer's schema says, and no row may depend on another (rows of several callers are computed
together), so batch normalisation does not belong here. Dropout does (randomness.py). The paper's block is `ffn`
(Ryabinin & Gusev, 2020).

An installed package adds its own by `register_expert`; extensions.py loads it, if the operator allows that package.
Code never comes from the network: a name that nothing registered is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learning_at_home.errors import ConfigError, LearningAtHomeError, SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from learning_at_home.shared_parameters import ARCHITECTURE as SHARED
from learning_at_home.shared_parameters import HEADER_SIZE
from learning_at_home.tensors.frames import DTYPES
from node_agent.experts.networks import run_network, zero_inputs
from node_agent.experts.randomness import numbers_from

INNER_FACTOR = 4  # the paper's blocks are four times wider inside
BACKWARD_FLOP_FACTOR = 3  # forward again, then one product for the inputs and one for the weights of each product
GRADIENT_FLOP_FACTOR = 2  # forward again, then the product for the inputs alone
HEAD_SIZE = 64  # of the transformer's attention, where the hidden size allows

Build = Callable[[LayerSpec], nn.Module]
FlopPerRow = Callable[[LayerSpec], int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A registered network. `flop_per_row` counts one forward's products; a multiplication and an addition are 2."""

    name: str
    build: Build
    flop_per_row: FlopPerRow | None = None


_registry: dict[str, Architecture] = {}


def register_expert(name: str, *, flop_per_row: FlopPerRow | None = None) -> Callable[[Build], Build]:
    """Decorator: the function or class makes the network of layers whose architecture is `name`.

    Without `flop_per_row` every parameter counts as one multiplication and addition per position of a row.
    """

    def register(build: Build) -> Build:
        if name in _registry and _registry[name].build is not build:
            raise ConfigError(f"two expert architectures are called {name!r}")
        _registry[name] = Architecture(name, build, flop_per_row)
        return build

    return register


def find_architecture(name: str) -> Architecture:
    """Raises ConfigError with the names there are."""
    if name not in _registry:
        raise ConfigError(f"no expert architecture {name!r} is loaded here; there are: {', '.join(sorted(_registry))}")
    return _registry[name]


def known_architectures() -> Collection[str]:
    """Names of those that are registered in this process."""
    return _registry.keys()


def name_of(build: Build) -> str | None:
    """The name under which this was registered."""
    return next((name for name, architecture in _registry.items() if architecture.build is build), None)


def build_expert(layer: LayerSpec, project: str, uid: ExpertUid) -> nn.Module:
    """The network of one cell with its initial weights: the same on every machine for the same project and uid."""
    seed = int.from_bytes(hashlib.sha256(f"{project}/{uid}".encode()).digest()[:8], "big") >> 1
    architecture = find_architecture(layer.architecture)
    with numbers_from(seed):
        return architecture.build(layer).to(DTYPES[layer.dtype])


def build_checked(layer: LayerSpec) -> nn.Module:
    """A network of the layer on the CPU, with any weights, checked: what it takes goes in, what it returns comes out.

    Not on the meta device: a forward there makes torch import its compiler (2 s). Raises ConfigError that names the
    layer and both shapes.
    """
    with numbers_from(0):
        module = _built(layer).to(DTYPES[layer.dtype])
    owner = f"layer {layer.prefix}: {layer.architecture}"
    try:
        with torch.no_grad():
            run_network(owner, layer, module, zero_inputs(layer, 2))
    except SpecMismatch as error:
        raise ConfigError(error.message) from error
    except Exception as error:  # the architecture's code, which may be anyone's
        rows = layer.schema or f"rows of {layer.inputs[0]}"
        raise ConfigError(f"{owner} cannot compute {rows}: {type(error).__name__}: {error}") from error
    return module


def _built(layer: LayerSpec) -> nn.Module:
    """A network of the layer. Raises ConfigError, whatever the architecture's code raises."""
    try:
        return find_architecture(layer.architecture).build(layer)
    except LearningAtHomeError:
        raise
    except Exception as error:
        raise ConfigError(
            f"layer {layer.prefix}: {layer.architecture} cannot be made: {type(error).__name__}: {error}"
        ) from error


def weight_bytes(layer: LayerSpec) -> int:
    """Bytes of one expert's weights, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return count_parameters(_built(layer)) * DTYPES[layer.dtype].itemsize


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flop_per_row(layer: LayerSpec) -> int:
    """Flop of one row's forward; a backward counts BACKWARD_FLOP_FACTOR times that."""
    architecture = find_architecture(layer.architecture)
    if architecture.flop_per_row is not None:
        return architecture.flop_per_row(layer)
    return 2 * weight_bytes(layer) // DTYPES[layer.dtype].itemsize * _positions(layer)


def _positions(layer: LayerSpec) -> int:
    return layer.sequence_length or 1


def _ffn_flop(layer: LayerSpec) -> int:
    size, inner = layer.hidden_size, INNER_FACTOR * layer.hidden_size
    return 2 * _positions(layer) * (size * inner + inner * inner + inner * size)


def _mlp_flop(layer: LayerSpec) -> int:
    return 2 * _positions(layer) * 2 * INNER_FACTOR * layer.hidden_size**2


def _transformer_flop(layer: LayerSpec) -> int:
    size, length = layer.hidden_size, _positions(layer)
    projections = 4 * size * size + 2 * INNER_FACTOR * size * size
    attention = 2 * length * size  # scores, then the weighted sum, for one position
    return 2 * length * (projections + attention)


class FeedForward(nn.Module):
    """The paper's block: x + d -> w -> w -> d, a layer norm and a ReLU after each of the inner products."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, inner),
            nn.LayerNorm(inner),
            nn.ReLU(),
            nn.Linear(inner, size),
        )

    def forward(self, rows: Tensor) -> Tensor:
        changed: Tensor = self.layers(rows)
        return rows + changed


@register_expert("ffn", flop_per_row=_ffn_flop)
def build_ffn(layer: LayerSpec) -> nn.Module:
    """The paper's block with w = 4d."""
    return FeedForward(layer.hidden_size, INNER_FACTOR * layer.hidden_size)


@register_expert("mlp", flop_per_row=_mlp_flop)
def build_mlp(layer: LayerSpec) -> nn.Module:
    """d -> 4d -> d with a ReLU between."""
    size, inner = layer.hidden_size, INNER_FACTOR * layer.hidden_size
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, size))


@register_expert("transformer", flop_per_row=_transformer_flop)
class TransformerLayer(nn.Module):
    """An encoder layer on rows of [sequence, hidden]: attention, then d -> 4d -> d, normalised before and added."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        if layer.sequence_length is None:
            raise ConfigError(f"layer {layer.prefix}: a transformer's rows are sequences; give it a sequence_length")
        size, inner = layer.hidden_size, INNER_FACTOR * layer.hidden_size
        self.num_heads = size // HEAD_SIZE if size % HEAD_SIZE == 0 else 1
        self.attention_norm = nn.LayerNorm(size)
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.inner_norm = nn.LayerNorm(size)
        self.inner = nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, size))

    def forward(self, rows: Tensor) -> Tensor:
        num_rows, length, size = rows.shape
        projected = self.queries_keys_values(self.attention_norm(rows))
        # [rows, length, 3, heads, head] -> three of [rows, heads, length, head]
        split = projected.view(num_rows, length, 3, self.num_heads, size // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2])
        rows = rows + self.attention_output(attended.transpose(1, 2).reshape(num_rows, length, size))
        changed: Tensor = self.inner(self.inner_norm(rows))
        return rows + changed


@register_expert(SHARED, flop_per_row=lambda layer: 0)
class Parameters(nn.Module):
    """A chunk of parameters that trainers share; each row reads it. What gives it meaning is shared_chunk.py."""

    origin: Tensor
    fingerprint: Tensor

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(layer.hidden_size))
        self.register_buffer("origin", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fingerprint", torch.zeros((), dtype=torch.int64))  # of whose parameters these are

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.pad(self.values, (HEADER_SIZE, 0)).repeat(len(rows), 1)  # a copy: answers outlast values


@register_expert("nop", flop_per_row=lambda layer: 0)
class Nop(nn.Module):
    """Returns its input: what is left of a call's cost is ours. Its one parameter gets no gradient."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor) -> Tensor:
        return rows
