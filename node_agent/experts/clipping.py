"""Clip each request's parameter gradient on its own, in one backward of all of them.

A Linear's gradient for some rows is the product of its output gradients with its inputs, so its norm per request
follows from both without the gradient itself being made (Goodfellow, 2015; Li et al., "Large Language Models Can Be
Strong Differentially Private Learners", 2022), and scaling a request's output gradients scales its share of the sum
(Bu et al., 2022). So: one forward and one backward to the layers' outputs, the norms, and the products that a backward
ends with anyway.

Works for networks whose parameters all belong to Linear and LayerNorm, each used once. Whether it does is tried once
per kind of network, against one request at a time; others are computed one at a time. So are batches whose sum comes
out larger than clipped gradients can add up to (an estimated norm may suffer when numbers cancel out), or not finite.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import reduce

import torch
from torch import Tensor, nn

from learning_at_home.project import LayerSpec
from learning_at_home.tensors.finite import is_finite
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import CLIP_EPSILON, Gradients, total_norm
from node_agent.experts.pullback import pull_back

# R rows of all requests, P positions in a row, N requests, L positions of the longest request, I and O a Linear's sizes

GRAM_COST = 4  # the products of positions are made in float64: half the speed, and of two operands
PRODUCT_NUMBERS = 4_000_000  # of products held at a time: 16 MB in float32
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a trial, relative to the norm
ROUNDING = 1e-3  # of a sum of clipped gradients, above what they may add up to
TRIAL_SIZES = [1, 2, 2, 5]


class Trial(Enum):
    """What random requests have shown of a kind of network."""

    WORKS = auto()
    NEEDS_NONE = auto()  # no parameter gets a gradient
    FAILS = auto()


_trials: dict[tuple[str, LayerSpec], Trial] = {}


@dataclass(frozen=True, slots=True)
class Use:
    """One call of a module in a forward."""

    module: nn.Linear | nn.LayerNorm
    into: Tensor
    out: Tensor | None  # None: it was not computed


def gradients_together(expert: Expert, rows: Tensor, output_gradient: Tensor, sizes: Sequence[int]) -> Gradients | None:
    """Of all requests' rows, the parameters' clipped per request and added up; None where this cannot be done.

    `sizes` are the requests' numbers of rows. Nothing is changed, and nothing that is not finite is returned.
    """
    if expert.kind not in _trials:
        _trials[expert.kind] = _try(expert)
    match _trials[expert.kind]:
        case Trial.WORKS if expert.clip_norm is not None:
            return _compute(expert, rows, output_gradient, sizes, expert.clip_norm)
        case Trial.NEEDS_NONE:
            found = expert.gradients(rows, output_gradient)
            return found if all(gradient is None for gradient in found.of_parameters) else None
    return None


def _compute(
    expert: Expert, rows: Tensor, output_gradient: Tensor, sizes: Sequence[int], clip_norm: float
) -> Gradients | None:
    found = _pulled_to_outputs(expert, rows, output_gradient)
    if found is None:
        return None
    of_rows, pulled = found
    with torch.no_grad():
        requests = Requests(sizes, rows.device)
        reached = [Share(use, gradient, requests) for use, gradient in pulled if gradient is not None]
        by_parameter, norm = _clip_and_add_up(reached, requests, clip_norm)
    of_parameters = tuple(by_parameter.get(id(parameter)) for parameter in expert.trained)
    if not math.isfinite(norm) or not is_finite(of_rows):
        return None
    if any(share.is_estimated for share in reached):
        norm = total_norm(of_parameters)
        if not norm <= len(sizes) * clip_norm * (1 + ROUNDING):
            return None
    return Gradients(of_rows, of_parameters, norm)


def _pulled_to_outputs(
    expert: Expert, rows: Tensor, output_gradient: Tensor
) -> tuple[Tensor, list[tuple[Use, Tensor | None]]] | None:
    """The gradients of the rows and of each use's output; None where these are not all that parameters learn by."""
    rows = rows.detach().requires_grad_()
    body, last = _parted(expert.module)
    with _recorded(body) as uses:
        answer = body(rows)
    outs, gradients_of_last = [use.out for use in uses], list[Tensor | None]()
    answer_gradient = output_gradient
    if last is not None:
        if output_gradient.shape != (*answer.shape[:-1], last.out_features):
            return None
        uses.append(Use(last, answer, None))
        answer_gradient, gradients_of_last = output_gradient @ last.weight.detach(), [output_gradient]
    if len({id(use.module) for use in uses}) < len(uses) or any(use.into.shape[0] != len(rows) for use in uses):
        return None
    inside = {id(parameter) for use in uses for parameter in use.module.parameters()}
    others = [parameter for parameter in expert.trained if id(parameter) not in inside]
    inputs = [rows, *(out for out in outs if out is not None), *others]
    of_rows, *found = pull_back(answer, answer_gradient, inputs)
    if any(gradient is not None for gradient in found[len(outs) :]):
        return None  # a parameter that no Linear or LayerNorm uses has a gradient
    gradients = [*found[: len(outs)], *gradients_of_last]
    return torch.zeros_like(rows) if of_rows is None else of_rows, list(zip(uses, gradients, strict=True))


def _clip_and_add_up(reached: Sequence[Share], requests: Requests, clip_norm: float) -> tuple[dict[int, Tensor], float]:
    """The sum of all requests' clipped gradients, by parameter, and a norm that it does not exceed.

    That is not finite when a request's norm is not.
    """
    if not reached:
        return {}, 0.0
    by_parameter: dict[int, Tensor] = {}
    norms_N, scales_N = _bounds(reached, requests), None
    if not bool((norms_N <= clip_norm).all()):
        norms_N = torch.linalg.vector_norm(torch.stack([n for share in reached for n in share.norms()]), dim=0)
        scales_N = (clip_norm / (norms_N + CLIP_EPSILON)).clamp(max=1.0)
        norms_N = norms_N * scales_N
    for share in reached:
        share.add_up(scales_N, by_parameter)
    return by_parameter, float(norms_N.sum())


def _bounds(reached: Sequence[Share], requests: Requests) -> Tensor:
    """What the norm of each request's gradient does not exceed, by the norms of its rows: [N]. Often that is enough."""
    squares_KR = torch.stack([norms for share in reached for norms in share.row_norms()]).square_()
    squares_KN = squares_KR.new_zeros(len(squares_KR), requests.count).index_add_(1, requests.of_row, squares_KR)
    squares = iter(squares_KN)
    return torch.stack([share.bound_of_squares(squares) for share in reached]).sum(0).sqrt_()


def _parted(module: nn.Module) -> tuple[nn.Module, nn.Linear | None]:
    """A chain without the Linear at its end, and that: a sixth of a forward or half of it, for a value that a backward
    has no use for. Other networks are left whole.
    """
    if type(module) is not nn.Sequential or len(module) < 2 or type(module[-1]) is not nn.Linear:
        return module, None
    last = module[-1]
    hooks = (
        kind
        for each in (module, last)
        for kind in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks)
    )
    return (module, None) if any(hooks) else (module[:-1], last)


@contextlib.contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Use]]:
    """The uses of each Linear and LayerNorm while this lasts."""
    uses: list[Use] = []

    def record(used: nn.Module, into: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(used, nn.Linear | nn.LayerNorm)
        uses.append(Use(used, into[0], out))

    handles = [part.register_forward_hook(record) for part in module.modules() if _is_known(part)]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _is_known(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.LayerNorm and len(module.normalized_shape) == 1)


class Requests:
    """Which rows of a batch are whose."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.count = len(sizes)
        self.sizes_N = torch.tensor(sizes, device=device)
        self.of_row = torch.repeat_interleave(self.sizes_N, output_size=sum(sizes))
        self.blocks = list(_blocks(sizes))

    def sums(self, values_RPO: Tensor) -> Tensor:
        """Per request, over its rows and positions: [N, O]."""
        sums = values_RPO.new_zeros(self.count, values_RPO.shape[-1])
        return sums.index_add_(0, self.of_row, values_RPO[:, 0] if values_RPO.shape[1] == 1 else values_RPO.sum(1))


class Share:
    """What one module adds to the gradient: bounds of its norms per request, the norms, the sum."""

    def __init__(self, use: Use, gradient: Tensor, requests: Requests) -> None:
        self.is_estimated = False  # its norms, from products of positions, which may cancel out
        self._module = use.module
        self._requests = requests
        self._gradient_RPO = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        self._into_RPI = use.into.detach().reshape(len(gradient), -1, use.into.shape[-1])
        # by parameter: what its gradient is the sum of, over rows and positions
        self._summands: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}  # of these, per request: [N, O]
        if use.module.bias is not None:
            self._summands[id(use.module.bias)] = self._gradient_RPO
        if isinstance(use.module, nn.LayerNorm) and use.module.weight is not None:
            normalised = nn.functional.layer_norm(self._into_RPI, use.module.normalized_shape, eps=use.module.eps)
            self._summands[id(use.module.weight)] = self._gradient_RPO * normalised

    def row_norms(self) -> list[Tensor]:
        """What `bound_of_squares` needs per request, of each row: each [R]."""
        factors = [self._gradient_RPO, self._into_RPI] if isinstance(self._module, nn.Linear) else []
        return [_norms(values) for values in (*factors, *self._summands.values())]

    def bound_of_squares(self, squares: Iterator[Tensor]) -> Tensor:
        """No less than the square of this module's norm per request, by the squares of `row_norms`: [N]."""
        bound = self._requests.sizes_N.new_zeros(self._requests.count, dtype=self._gradient_RPO.dtype)
        if isinstance(self._module, nn.Linear):
            bound = next(squares) * next(squares)
        for _ in self._summands:  # a sum is no longer than all its parts in a line
            bound = bound + next(squares) * (self._requests.sizes_N * self._gradient_RPO.shape[1])
        return bound

    def norms(self) -> list[Tensor]:
        """Of the gradients of the module's parameters: each [N]."""
        self._sums = {parameter: self._requests.sums(values) for parameter, values in self._summands.items()}
        norms = [_norms(sums) for sums in self._sums.values()]
        if isinstance(self._module, nn.Linear):
            blocks = [(block.pad(self._gradient_RPO), block.pad(self._into_RPI)) for block in self._requests.blocks]
            norms.append(_joined([self._norms_of_products(*block) for block in blocks]))
        return norms

    def add_up(self, scales_N: Tensor | None, by_parameter: dict[int, Tensor]) -> None:
        """The gradients of the module's parameters, of all requests, each scaled where there are scales."""
        gradient = self._gradient_RPO
        if scales_N is None:
            for parameter, values in self._summands.items():
                by_parameter[parameter] = values.sum((0, 1))
        else:
            gradient = gradient * scales_N[self._requests.of_row].view(-1, 1, 1)
            for parameter, sums in self._sums.items():
                by_parameter[parameter] = scales_N @ sums
        if isinstance(self._module, nn.Linear):
            by_parameter[id(self._module.weight)] = gradient.flatten(0, 1).t() @ self._into_RPI.flatten(0, 1)

    def _norms_of_products(self, gradient_NLO: Tensor, into_NLI: Tensor) -> Tensor:
        """The norm of each request's product of gradients and inputs: [N]."""
        length, outs, ins = gradient_NLO.shape[1], gradient_NLO.shape[2], into_NLI.shape[2]
        if length == 1:
            return _norms(gradient_NLO) * _norms(into_NLI)
        if GRAM_COST * length * (outs + ins) > outs * ins:  # the products are hardly larger than their factors
            at_once = max(1, PRODUCT_NUMBERS // (outs * ins))
            parts = zip(gradient_NLO.transpose(1, 2).split(at_once), into_NLI.split(at_once), strict=True)
            return _joined([_norms(torch.bmm(gradient, into)) for gradient, into in parts])
        self.is_estimated = True
        return _norms_by_positions(gradient_NLO.double(), into_NLI.double()).to(gradient_NLO.dtype)


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring requests of about one size, padded to the longest with zeros: at most twice the numbers."""

    requests: slice
    rows: slice
    sizes: list[int]

    def pad(self, values_RPD: Tensor) -> Tensor:
        """[requests, L, D]"""
        own = values_RPD[self.rows]
        count, longest = len(self.sizes), max(self.sizes)
        if count * longest == len(own):
            return own.reshape(count, -1, own.shape[-1])
        padded = nn.utils.rnn.pad_sequence(list(own.split_with_sizes(self.sizes)), batch_first=True)
        return padded.reshape(count, -1, own.shape[-1])


def _blocks(sizes: Sequence[int]) -> Iterator[Block]:
    """Requests beside each other whose sizes have one power of two above them."""
    first = start = 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and (sizes[last] - 1).bit_length() == (sizes[first] - 1).bit_length():
            last += 1
        stop = start + sum(sizes[first:last])
        yield Block(slice(first, last), slice(start, stop), list(sizes[first:last]))
        first, start = last, stop


def _norms(values: Tensor) -> Tensor:
    """Of each entry of the first dimension."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms


def _norms_by_positions(gradient_NLO: Tensor, into_NLI: Tensor) -> Tensor:
    """The norm of each request's product of gradients and inputs, from products between its positions: [N]."""
    of_gradients_NLL = torch.bmm(gradient_NLO, gradient_NLO.transpose(1, 2))
    of_inputs_NLL = torch.bmm(into_NLI, into_NLI.transpose(1, 2))
    squares: Tensor = (of_gradients_NLL * of_inputs_NLL).sum((1, 2))
    return squares.clamp(min=0.0).sqrt()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _try(expert: Expert) -> Trial:
    """Whether random requests of such an expert give together what they give one at a time."""
    if not expert.trained:
        return Trial.NEEDS_NONE
    dtype = expert.dtype
    random = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        rows = torch.randn(sum(TRIAL_SIZES), *expert.layer.row_shape, generator=random, dtype=dtype)
        return rows.to(expert.device)

    rows, gradient = draw(), draw()
    parts = zip(torch.split(rows, TRIAL_SIZES), torch.split(gradient, TRIAL_SIZES), strict=True)
    try:
        alone = [expert.gradients(*part) for part in parts]
        if all(gradient is None for found in alone for gradient in found.of_parameters):
            return Trial.NEEDS_NONE
        clip_norm = sorted(found.norm for found in alone)[len(alone) // 2]
        expected = reduce(Gradients.plus, [found.clipped(clip_norm) for found in alone])
        together = _compute(expert, rows, gradient, TRIAL_SIZES, clip_norm)
    except Exception:  # noqa: BLE001 - an expert's code, which may be anyone's, may raise anything
        return Trial.FAILS
    if together is None or [g is None for g in together.of_parameters] != [g is None for g in expected.of_parameters]:
        return Trial.FAILS
    difference = total_norm(
        [
            None if ours is None or theirs is None else ours - theirs
            for ours, theirs in zip(together.of_parameters, expected.of_parameters, strict=True)
        ]
    )
    return Trial.WORKS if difference <= TOLERANCE[dtype] * expected.norm else Trial.FAILS
