"""One expert of the swarm, used like a local layer: `y = expert(x)`, with autograd.

On backward its host recomputes forward unless it remembers it, returns the gradient of the inputs and applies its own
optimizer step at once: there is no parameter here to optimize. Knows nothing of gates and grids.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from learning_at_home.client.checks import (
    check_finite,
    check_first_order,
    check_gradient,
    check_is_expert,
    check_one_request,
    check_specs,
)
from learning_at_home.client.compression import Compression, compression_of
from learning_at_home.client.fanout import CallContext, FanOut, Result, Task, frame
from learning_at_home.client.nested_call import Leaves, Values, call_nested, check_all_finite, check_leaves, flatten
from learning_at_home.client.swarm_module import SwarmModule
from learning_at_home.client.traced_round import TracedRound
from learning_at_home.errors import (
    CallTimeout,
    ConfigError,
    ExpertFailed,
    LearningAtHomeError,
    NonFiniteTensor,
    UnknownExpert,
)
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.small import COPIED_BYTES
from learning_at_home.wire.messages import FORWARDS, Operation, TensorSpec

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm

_TO_TRAIN, _NOTHING_TO_TRAIN = torch.empty(0, requires_grad=True), torch.empty(0)  # see training_anchor
_ALL_ROWS = np.empty(0, np.int64)  # of a call whose rows are all the same to us


class RemoteExpert(SwarmModule):
    """`y = RemoteExpert(swarm, "ffn0.1.2")(x)`, x [rows, *row shape] of the layer's dtype, on any device.

    Of a layer with a schema: `outputs = RemoteExpert(swarm, "gru0.1.2")(x, mask=m, state=(h, c))`, nested as the schema
    says; each tensor's first dimension are the rows, and whole numbers and bools get no gradient.

    Raises InvalidUid, UnknownLayer or ConfigError (deadline_s, compression) at once; a call raises SpecMismatch,
    EmptyBatch, BatchTooLarge, NonFiniteTensor (when the input's NaN or infinity shows in the output, as in a local
    layer), UnknownExpert when no living node serves it, what its host answers (ExpertFailed, NodeDraining ...),
    CallTimeout or PeerUnreachable. While the deadline allows, a full node is asked again, and one whose connection was
    lost once more.
    Backward goes to the host that did the forward, whoever serves the expert by then; when that host is gone it raises.
    However often it was sent, the host applies it once at most; one that raised may have been applied.
    After `eval()` or `requires_grad_(False)` a backward brings gradients and updates nothing; after `eval()` the
    expert's dropout is off.
    """

    def __init__(
        self,
        swarm: Swarm,
        uid: ExpertUid | str,
        *,
        deadline_s: float | None = None,
        compression: Compression | str | tuple[str, str] = "none",
    ) -> None:
        parsed = uid if isinstance(uid, ExpertUid) else ExpertUid.parse(uid)
        layer = swarm.project.layer(parsed.prefix)
        super().__init__(str(parsed), layer)
        self.uid = parsed
        check_is_expert(self.layer)
        self.deadline_s = self.layer.deadline_s if deadline_s is None else deadline_s
        if not self.deadline_s > 0:
            raise ConfigError(f"{self.uid}: deadline_s is {self.deadline_s}; it must be positive")
        self.compression = compression_of(compression, str(self.uid))
        self._name = str(self.uid)
        self._row_shape, self._max_rows = self.layer.row_shape, self.layer.max_rows
        self._cell = self.layer.cells.cell(self.uid)
        self._swarm = swarm  # keeps the connections open for as long as somebody holds the expert
        self._calls: CallContext = swarm.calls
        self._last_holder: PeerAddress | None = None

    @property
    def calls(self) -> CallContext:
        """What its calls share with others of its process."""
        return self._calls

    @property
    def trains_experts(self) -> bool:
        """Whether a backward through a forward that is made now lets the expert learn."""
        return self.training and self.train_experts is not False

    def requires_grad_(self, requires_grad: bool = True) -> RemoteExpert:
        """Whether a backward trains the expert. A model's `requires_grad_` does not get here: nothing is ours."""
        self.train_experts = requires_grad
        return self

    def _compute(self, x: Tensor) -> Tensor:
        """The expert's output, of the shape of x. With autograd on, its backward trains the expert."""
        self._check(x)
        if not x.is_cpu:  # not in the graph: a GPU has one thread of autograd's, which must not wait here for all
            return self._compute(x.to("cpu")).to(x.device)
        holder = self.holder()
        if not torch.is_grad_enabled():
            return self.call(self.forward_operation, (x,), holder)
        if torch._C._are_functorch_transforms_active():
            _apply(x, _NOTHING_TO_TRAIN, self, holder, None)  # raises: it cannot be transformed
        recorded: list[Tensor] = []
        anchor = training_anchor(self.layer, self.trains_experts)

        def record() -> None:
            # What `apply` does for functorch's transforms, of which there are none now, is a third of an empty call.
            recorded.append(_apply_plainly(x, anchor, self, holder, None))

        answer = self.call(self.forward_operation, (x,), holder, record)
        if not recorded:
            return _apply_plainly(x, anchor, self, holder, (answer,))
        y = recorded[0]
        y.data = answer
        return y

    def _compute_nested(self, leaves: Leaves) -> Leaves:
        check_leaves(self._name, self.layer, leaves)
        check_one_request(self._name, self.layer, leaves[0])
        return call_nested(self, leaves, training_anchor(self.layer, self.trains_experts))

    def _check(self, x: Tensor) -> None:
        """All that can be told without reading the numbers."""
        if (
            type(x) is not Tensor
            or x.dtype != self._dtype
            or x.shape[1:] != self._row_shape
            or not 0 < x.shape[0] <= self._max_rows
            or x.layout != torch.strided
        ):  # perhaps something is wrong: these know, and have the words for it
            check_specs(self._name, self.layer, x)
            check_one_request(self._name, self.layer, x)

    def extra_repr(self) -> str:
        takes = self.layer.schema or f"{self.layer.dtype}{list(self.layer.row_shape)}"
        return f"{self.uid}, {self.layer.architecture}, {takes}"

    def call(
        self,
        operation: Operation,
        tensors: tuple[Tensor, ...],
        holder: PeerAddress,
        meanwhile: Callable[[], None] | None = None,
    ) -> Tensor:
        """One request to a host of the expert, without autograd. Raises what RemoteExpert's docstring lists.

        `meanwhile` is called when the request has left; not where many threads call, since others compute meanwhile.
        """
        tracing = self._calls.tracing
        if tracing.current is None:
            x = tensors[0]
            if x.nbytes <= COPIED_BYTES and x.is_cpu and self._swarm.asynchronous.crowded:
                return self._call_shared(operation, tensors, holder)
            return self._call(operation, tensors, holder, meanwhile, None)
        with tracing.round(self._name, operation, tensors[0].shape[0]) as traced:
            return self._call(operation, tensors, holder, meanwhile, traced)

    def _call(
        self,
        operation: Operation,
        tensors: tuple[Tensor, ...],
        holder: PeerAddress,
        meanwhile: Callable[[], None] | None,
        traced: TracedRound | None,
    ) -> Tensor:
        context = self._calls
        deadline = context.clock.monotonic_s() + self.deadline_s
        exchange = context.connections.exchange()
        try:
            fanout = FanOut(context, exchange, deadline, insist=True, compression=self.compression, traced=traced)
            fanout.ask((self.task(operation, tensors, holder),))
            if meanwhile is not None:
                meanwhile()
            result = fanout.next_result(deadline + 1.0)  # every call answers at its deadline at the latest
        finally:
            exchange.give_back()
        if result is None:
            raise CallTimeout(f"{self.uid}: no answer in {self.deadline_s:g} s")
        y = self.tensor_of(result)
        return y if tensors[0].is_cpu else y.to(tensors[0].device)

    def _call_shared(self, operation: Operation, tensors: tuple[Tensor, ...], holder: PeerAddress) -> Tensor:
        """The same on the loop that many threads share."""
        task = self.task(operation, tensors, holder)
        waiting = self._swarm.asynchronous.share(task, self.deadline_s, self.compression)
        result = waiting.wait(self.deadline_s + 1.0)
        if result is None:
            raise CallTimeout(f"{self.uid}: no answer in {self.deadline_s:g} s")
        return self.tensor_of(result)

    def tensors_of(self, result: Result) -> Leaves:
        """The same of an answer of several tensors."""
        if result.error is not None:
            if isinstance(result.error, ExpertFailed | NonFiniteTensor):
                check_all_finite(self._name, self.layer, result.task.tensors)
            raise _naming(self.uid, result.error)
        return result.tensors

    def tensor_of(self, result: Result) -> Tensor:
        """The answer, on the CPU, or its error with the expert's name: NonFiniteTensor where the input is to blame."""
        if result.tensor is None:
            if isinstance(result.error, ExpertFailed):
                check_finite(self._name, result.task.tensors[0])
            raise _naming(self.uid, result.error)
        return result.tensor

    async def acall(self, *inputs: Values, **named: Values) -> Values:
        """The expert's output in a running event loop, without autograd: many calls may be under way at once.

        Those that begin in one turn of the loop go to their node in one message. Raises what a call raises.
        """
        if self._is_nested or named or len(inputs) != 1:
            return await self._acall_nested(flatten(self._name, self.layer, inputs, named))
        x = inputs[0]
        self._check(x)
        task = self.task(self.forward_operation, (x,), self.holder())
        result = await self._swarm.asynchronous.of_running_loop().call(task, self.deadline_s, self.compression)
        y = self.tensor_of(result)
        return y if x.is_cpu else y.to(x.device)

    async def _acall_nested(self, leaves: Leaves) -> Values:
        schema = self.layer.nested
        if schema is None:
            return await self.acall(*leaves)
        check_leaves(self._name, self.layer, leaves)
        check_one_request(self._name, self.layer, leaves[0])
        task = self.task(self.forward_operation, tuple([leaf.detach().to("cpu") for leaf in leaves]), self.holder())
        result = await self._swarm.asynchronous.of_running_loop().call(task, self.deadline_s, self.compression)
        return schema.unflatten_output([output.to(leaves[0].device) for output in self.tensors_of(result)])

    def submit(self, *inputs: Values, **named: Values) -> concurrent.futures.Future[Values]:
        """`acall` from any thread, on a thread of the swarm's: a future of the output.

        The inputs must not change before.
        """
        return self._swarm.asynchronous.submit(self.acall(*inputs, **named))

    def task(self, operation: Operation, tensors: tuple[Tensor, ...], holder: PeerAddress) -> Task:
        """The work that a call is, framed, its tensors on the CPU. Raises UsageError when they do not fit the codec."""
        # A forward's content matters to nobody once its caller has given up. What a backward sends, perhaps a moment
        # after that, an expert would learn from: it must not change, so it is a copy.
        if operation not in FORWARDS:
            tensors = tuple(map(_own_copy, tensors))
        elif not tensors[0].is_cpu:
            tensors = (tensors[0].detach().to("cpu"),)
        framed = frame(tensors, holder, self.compression.request)
        expected: TensorSpec | tuple[TensorSpec, ...] = framed[0][0]
        num_rows = framed[0][0].shape[0]
        if self._is_nested:
            answered = self.layer.outputs if operation in FORWARDS else self.layer.float_inputs
            expected = tuple([TensorSpec(leaf.dtype, (num_rows, *leaf.shape)) for leaf in answered])
        return Task(self._name, self._cell, holder, operation, tensors, num_rows, _ALL_ROWS, expected, framed=framed)

    def holder(self) -> PeerAddress:
        """Who serves the expert; the last holder while it is only suspected, since nobody else can be asked instead.

        Raises UnknownExpert.
        """
        directory = self._calls.directory
        holder = directory.layer(self.uid.prefix).holders[self._cell]
        if holder is None and self._last_holder is not None:
            now = self._calls.clock.monotonic_s()
            if any(peer.public_key == self._last_holder.public_key for peer in directory.suspected(now)):
                holder = self._last_holder
        if holder is None:
            holder = directory.put_aside_holder(self.uid.prefix, self._cell)
        if holder is None:
            alive = directory.layer(self.uid.prefix).num_alive
            raise UnknownExpert(
                f"{self.uid}: no living node serves it now ({alive} of {self.layer.cells.num_cells} experts of layer "
                f"{self.uid.prefix} are alive); swarm.wait_until_alive() waits for them"
            )
        if holder is not self._last_holder:  # a module's attributes cost a microsecond to set
            self._last_holder = holder
        return holder


class _SavedCall(FunctionCtx):
    """What forward leaves for backward."""

    expert: RemoteExpert
    operation: Operation
    holder: PeerAddress
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _RemoteCall(torch.autograd.Function):
    """A forward's place in the graph. Without an answer: made while that is under way, and only its shape is known."""

    @staticmethod
    def forward(
        ctx: _SavedCall,
        x: Tensor,
        anchor: Tensor,
        expert: RemoteExpert,
        holder: PeerAddress,
        answer: tuple[Tensor] | None,  # in a tuple, so that it is no input
    ) -> Tensor:
        ctx.expert, ctx.holder, ctx.operation = expert, holder, expert.backward_operation
        ctx.save_for_backward(x)
        if answer is not None:
            return answer[0]
        return torch.empty_strided(x.shape, (0,) * x.dim(), dtype=x.dtype, device=x.device)  # memory for one number

    @staticmethod
    def backward(ctx: _SavedCall, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        name = ctx.expert._name
        check_first_order(name)
        check_gradient(name, gradient)
        (x,) = ctx.saved_tensors
        # Never to another host that serves the expert by now: its weights are others, and so is their gradient.
        x_gradient = ctx.expert.call(ctx.operation, (x, gradient), ctx.holder)
        return x_gradient if ctx.needs_input_grad[0] else None, None, None, None, None


_apply: Callable[..., Tensor] = _RemoteCall.apply
_apply_plainly: Callable[..., Tensor] = super(torch.autograd.Function, _RemoteCall).apply


def training_anchor(layer: LayerSpec, trains_experts: bool) -> Tensor:
    """An empty input that asks for a gradient when experts are trained: backward must reach them though x is data."""
    return _TO_TRAIN if trains_experts and layer.optimizer.name != "frozen" else _NOTHING_TO_TRAIN


def _own_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that nobody else can write to; `to_frames` makes one of a small tensor by itself."""
    if tensor.nbytes <= COPIED_BYTES:
        return tensor
    detached = tensor.detach()
    copy = detached.to("cpu").contiguous()
    return copy.clone() if copy.data_ptr() == detached.data_ptr() else copy


def _naming(uid: ExpertUid, error: LearningAtHomeError | None) -> LearningAtHomeError:
    """The error, with the expert's name in front when it lacks it."""
    if error is None:
        return CallTimeout(f"{uid}: no answer")
    if str(uid) not in error.message:
        error.message = f"{uid}: {error.message}"
        error.args = (error.message,)
    return error
