"""Calls of experts that take or return several tensors: flat on their way, nested for whoever calls.

Values are checked here, by the schema of the layer, before anything is sent. One tensor in and one like it out takes
the shorter way of remote_expert.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from learning_at_home.client.checks import check_finite, check_first_order, check_gradient, seen
from learning_at_home.client.fanout import FanOut
from learning_at_home.errors import CallTimeout, EmptyBatch, SpecMismatch
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.wire.messages import Operation

if TYPE_CHECKING:
    from learning_at_home.client.remote_expert import RemoteExpert

Leaves = tuple[Tensor, ...]  # in the order of the schema
Values = Any  # tensors, in tuples and dicts as a schema has them


def flatten(owner: str, layer: LayerSpec, args: Sequence[object], kwargs: Mapping[str, object]) -> Leaves:
    """The tensors of a call. Raises SpecMismatch when the call has another structure, or a leaf is no tensor."""
    if layer.nested is None:
        if len(args) + len(kwargs) == 1 and (args or "x" in kwargs):
            return (args[0] if args else kwargs["x"],)  # type: ignore[return-value]
        raise SpecMismatch(
            f"{owner} takes one tensor, x; {len(args)} positional and {len(kwargs)} named inputs came. Experts of "
            "several are those of a layer with a schema"
        )
    leaves = layer.nested.flatten_inputs(owner, args, kwargs)
    for leaf, value in zip(layer.nested.inputs, leaves, strict=True):
        if not isinstance(value, Tensor):
            came = type(value).__name__
            raise SpecMismatch(f"{owner}: input {leaf.path} is a {came}; the expert takes {leaf}, as a torch.Tensor")
    return tuple(leaves)


def check_leaves(owner: str, layer: LayerSpec, leaves: Leaves) -> int:
    """The number of rows. Raises SpecMismatch or EmptyBatch that names the input by its path."""
    num_rows = leaves[0].shape[0] if leaves[0].dim() else 0
    for leaf, value in zip(layer.inputs, leaves, strict=True):
        wrong_shape = not value.dim() or value.shape[1:] != leaf.shape
        if wrong_shape or value.dtype != DTYPES[leaf.dtype] or value.layout != torch.strided:
            raise SpecMismatch(f"{owner}: input {leaf.path} is {seen(value)}; the expert takes {leaf}")
        if len(value) != num_rows:
            raise SpecMismatch(
                f"{owner}: input {leaf.path} is {seen(value)}, of {len(value):,} rows; input "
                f"{layer.inputs[0].path} has {num_rows:,}"
            )
    if not num_rows:
        raise EmptyBatch(f"{owner}: a batch of no rows; the expert takes at least one")
    return num_rows


def check_all_finite(owner: str, layer: LayerSpec, leaves: Leaves) -> None:
    """Raises NonFiniteTensor that names the input."""
    for leaf, value in zip(layer.inputs, leaves, strict=False):  # behind them there may be gradients
        check_finite(owner, value, leaf.path)


def flat_rows(leaf: Tensor, leading: tuple[int, ...], row_shape: tuple[int, ...]) -> Tensor:
    """Rows in these leading dimensions, in one; what has another shape is left as it is, to be refused."""
    return leaf.flatten(0, len(leading) - 1) if leaf.shape == (*leading, *row_shape) else leaf


def call_nested(expert: RemoteExpert, leaves: Leaves, anchor: Tensor) -> Leaves:
    """The expert's outputs, on the device of the first input. With autograd on, its backward trains the expert.

    `anchor`: see `training_anchor`.
    """
    device = leaves[0].device
    holder = expert.holder()
    on_cpu = tuple([leaf.to("cpu") for leaf in leaves])  # in the graph: a GPU's one thread of autograd's must not wait
    if torch.is_grad_enabled():
        outputs: Leaves = _NestedCall.apply(anchor, expert, holder, *on_cpu)  # type: ignore[no-untyped-call]
    else:
        outputs = ask(expert, expert.forward_operation, on_cpu, holder)
    return outputs if device.type == "cpu" else tuple([output.to(device) for output in outputs])


def ask(expert: RemoteExpert, operation: Operation, tensors: Leaves, holder: PeerAddress) -> Leaves:
    """One request to a host of the expert, without autograd. Raises what RemoteExpert's docstring lists."""
    context = expert.calls
    deadline = context.clock.monotonic_s() + expert.deadline_s
    with (
        context.tracing.round(str(expert.uid), operation, len(tensors[0])) as traced,
        context.connections.exchange() as exchange,
    ):
        fanout = FanOut(context, exchange, deadline, insist=True, compression=expert.compression, traced=traced)
        fanout.ask((expert.task(operation, tensors, holder),))
        result = fanout.next_result(deadline + 1.0)  # every call answers at its deadline at the latest
    if result is None:
        raise CallTimeout(f"{expert.uid}: no answer in {expert.deadline_s:g} s")
    return expert.tensors_of(result)


class _SavedNestedCall(FunctionCtx):
    """What forward leaves for backward."""

    expert: RemoteExpert
    operation: Operation
    holder: PeerAddress
    saved_tensors: Leaves
    needs_input_grad: tuple[bool, ...]


class _NestedCall(torch.autograd.Function):
    """One request forward, one backward, of the tensors on the CPU."""

    @staticmethod
    def forward(
        ctx: _SavedNestedCall, anchor: Tensor, expert: RemoteExpert, holder: PeerAddress, *leaves: Tensor
    ) -> Leaves:
        ctx.expert, ctx.holder, ctx.operation = expert, holder, expert.backward_operation
        ctx.save_for_backward(*leaves)
        return ask(expert, expert.forward_operation, tuple([leaf.detach() for leaf in leaves]), holder)

    @staticmethod
    def backward(ctx: _SavedNestedCall, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        name = str(ctx.expert.uid)
        check_first_order(name)
        for gradient in gradients:
            check_gradient(name, gradient)
        # Never to another host that serves the expert by now: its weights are others, and so is their gradient.
        found = ask(ctx.expert, ctx.operation, (*ctx.saved_tensors, *gradients), ctx.holder)
        return None, None, None, *by_leaf(ctx.saved_tensors, found, ctx.needs_input_grad[3:])


def by_leaf(leaves: Leaves, found: Leaves, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of the floating leaves, each at the place of its leaf; None where there is none, or none needed."""
    rest = iter(found)
    of_each = [next(rest) if leaf.is_floating_point() else None for leaf in leaves]
    return tuple([gradient if wanted else None for gradient, wanted in zip(of_each, needed, strict=True)])
