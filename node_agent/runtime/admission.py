"""Whether a request fits the expert that it names, and its tensors if it does.

Checks in the order of their cost: names and numbers in the header first, contents last. Every refusal names the
expert, what came and what it takes. Called in the data-plane thread. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from learning_at_home.errors import BatchTooLarge, EmptyBatch, NonFiniteTensor, SpecMismatch
from learning_at_home.project import LayerSpec
from learning_at_home.tensors.frames import from_frames, from_frames_checked
from learning_at_home.transport.server import TensorFrame
from learning_at_home.wire.messages import FORWARDS, Codec, Operation, Work
from node_agent.experts.expert import Expert
from node_agent.runtime.nested_admission import check_nested_specs, unpack_nested

TENSOR_NAMES: dict[Operation, tuple[str, ...]] = {
    "forward": ("the inputs",),
    "backward": ("the inputs", "the gradient of the outputs"),
    "gradient": ("the inputs", "the gradient of the outputs"),
    "eval_forward": ("the inputs",),
    "eval_gradient": ("the inputs", "the gradient of the outputs"),
}


def check_specs(expert: Expert, work: Work, max_rows: int) -> int:
    """The number of rows. Raises SpecMismatch, EmptyBatch or BatchTooLarge."""
    if expert.has_schema:
        rows = check_nested_specs(expert, work)
    else:
        names = TENSOR_NAMES[work.operation]
        layer, tensors = expert.layer, work.tensors
        if layer.is_shared and work.operation not in ("forward", "backward"):
            raise SpecMismatch(f"{expert.uid}: shared parameters have no gradient to ask for; a forward reads them")
        if len(tensors) != len(names):
            raise SpecMismatch(
                f"{expert.uid}: {work.operation} takes {len(names)} tensor(s), {' and '.join(names)} "
                f"({row_spec(layer)}); {len(tensors)} came"
            )
        for name, spec, shape in zip(names, tensors, (expert.input_shape, expert.row_shape), strict=False):
            if spec.dtype != layer.dtype or spec.shape[1:] != shape or not spec.shape:
                raise SpecMismatch(f"{expert.uid}: {name} are {spec}, the expert takes {row_spec(layer, shape)}")
        rows = tensors[0].shape[0]
        if tensors[-1].shape[0] != rows:
            came = " and ".join(map(str, tensors))
            raise SpecMismatch(
                f"{expert.uid}: inputs and gradient differ in their rows: {came}; the expert takes {row_spec(layer)}"
            )
    if rows == 0:
        takes = row_spec(expert.layer)
        raise EmptyBatch(f"{expert.uid}: a batch of no rows; the expert takes {takes} with at least one row")
    most = min(max_rows, expert.max_rows)
    if rows > most:
        raise BatchTooLarge(f"{expert.uid}: a batch of {rows:,} rows; this node takes {most:,} at once, split it")
    return rows


def unpack(
    expert: Expert, work: Work, frames: Sequence[Sequence[TensorFrame]], codec: Codec = "none"
) -> tuple[Tensor, ...]:
    """The tensors, on the CPU. Raises NonFiniteTensor for those of anything but a forward.

    A forward changes nothing, and whose fault an output is that is not finite, `compute` finds out.
    """
    if expert.has_schema:
        return unpack_nested(expert, work, frames, codec)
    if work.operation in FORWARDS:
        return (from_frames(work.tensors[0], frames[0], codec),)
    read = [from_frames_checked(spec, parts, codec) for spec, parts in zip(work.tensors, frames, strict=True)]
    for name, (_, finite) in zip(TENSOR_NAMES[work.operation], read, strict=True):
        if not finite:
            raise NonFiniteTensor(f"{expert.uid}: {name} hold NaN or infinity; the expert takes finite numbers only")
    return tuple([tensor for tensor, _ in read])


def row_spec(layer: LayerSpec, shape: Sequence[int] | None = None) -> str:
    """For people: float32[*, 64]. Without a shape that of the inputs."""
    if layer.schema is not None and shape is None:
        return layer.schema
    return f"{layer.dtype}[*, {', '.join(map(str, layer.input_shape if shape is None else shape))}]"
