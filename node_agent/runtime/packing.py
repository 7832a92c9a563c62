"""Answers as they travel, and the look at those that were computed without one. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from learning_at_home.errors import UsageError
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import to_frames, to_frames_checked
from learning_at_home.tensors.small import COPIED_BYTES
from learning_at_home.wire.messages import Codec, TensorSpec

PackedAnswer = tuple[tuple[TensorSpec, ...], Sequence[memoryview | bytes], Codec]
ROWS_SEEN = 256  # of an answer that its caller will judge: an expert that fails spoils more than a row


def packed_answer(tensor: Tensor, codec: Codec, chunk_bytes: int, *, unseen: bool) -> PackedAnswer | None:
    """In the form that the caller wants, or as it is when its numbers do not fit that.

    None when the tensor is small, was not looked at yet, and is not finite.
    """
    if codec != "none":
        try:
            spec, frames = to_frames(tensor, codec, chunk_bytes)
            return (spec,), frames, codec
        except UsageError:
            pass  # also of what is not finite: the caller sees that
    if not unseen:
        spec, frames = to_frames(tensor, "none", chunk_bytes)
        return (spec,), frames, "none"
    spec, frames, finite = to_frames_checked(tensor, chunk_bytes)
    return ((spec,), frames, "none") if finite else None


def packed_answers(tensors: Sequence[Tensor], codec: Codec, chunk_bytes: int) -> PackedAnswer:
    """The same of several tensors of one answer, which were looked at: all as they are when one does not fit."""
    try:
        packed = [to_frames(tensor, codec, chunk_bytes) for tensor in tensors]
    except UsageError:
        codec = "none"
        packed = [to_frames(tensor, codec, chunk_bytes) for tensor in tensors]
    return tuple([spec for spec, _ in packed]), [frame for _, frames in packed for frame in frames], codec


def looks_finite(answer: Tensor) -> bool:
    """Of what was sent unseen, as some of its rows tell. A small one was looked at."""
    return answer.nbytes <= COPIED_BYTES or is_finite(answer[:: math.ceil(len(answer) / ROWS_SEEN)])
