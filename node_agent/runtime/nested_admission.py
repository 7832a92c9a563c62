"""Whether a request fits an expert with a schema: admission.py's rules for several tensors, each named by its path.

Called in the data-plane thread. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learning_at_home.errors import NonFiniteTensor, SpecMismatch
from learning_at_home.schema import Leaf
from learning_at_home.tensors.frames import from_frames, from_frames_checked
from learning_at_home.transport.server import TensorFrame
from learning_at_home.wire.messages import FORWARDS, Codec, Operation, Work
from node_agent.experts.expert import Expert


def check_nested_specs(expert: Expert, work: Work) -> int:
    """The number of rows, which may be 0 or too many. Raises SpecMismatch that names the tensor."""
    named = named_tensors(expert, work.operation)
    if len(work.tensors) != len(named):
        names = ", ".join(name for name, _ in named)
        raise SpecMismatch(f"{expert.uid}: {work.operation} takes {names}; {len(work.tensors)} tensor(s) came")
    for (name, leaf), spec in zip(named, work.tensors, strict=True):
        if spec.dtype != leaf.dtype or spec.shape[1:] != leaf.shape or not spec.shape:
            raise SpecMismatch(f"{expert.uid}: {name} is {spec}, the expert takes {leaf}")
    rows = work.tensors[0].shape[0]
    for (name, _), spec in zip(named, work.tensors, strict=True):
        if spec.shape[0] != rows:
            raise SpecMismatch(f"{expert.uid}: {name} has {spec.shape[0]:,} rows, {named[0][0]} has {rows:,}")
    return rows


def unpack_nested(
    expert: Expert, work: Work, frames: Sequence[Sequence[TensorFrame]], codec: Codec
) -> tuple[Tensor, ...]:
    """The tensors, on the CPU. Raises NonFiniteTensor for those of anything but a forward."""
    if work.operation in FORWARDS:
        return tuple([from_frames(spec, parts, codec) for spec, parts in zip(work.tensors, frames, strict=True)])
    read = [from_frames_checked(spec, parts, codec) for spec, parts in zip(work.tensors, frames, strict=True)]
    for (name, _), (_, finite) in zip(named_tensors(expert, work.operation), read, strict=True):
        if not finite:
            raise NonFiniteTensor(f"{expert.uid}: {name} holds NaN or infinity; the expert takes finite numbers only")
    return tuple([tensor for tensor, _ in read])


def named_tensors(expert: Expert, operation: Operation) -> list[tuple[str, Leaf]]:
    """What an operation takes, as it is told to people."""
    layer = expert.layer
    named = [(f"input {leaf.path}", leaf) for leaf in layer.inputs]
    if operation not in FORWARDS:
        named += [(f"the gradient of output {leaf.path}", leaf) for leaf in layer.outputs]
    return named
