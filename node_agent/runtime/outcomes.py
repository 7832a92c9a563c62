"""What becomes of a request, and whose fault it is when it fails.

An expert's code, which may be anyone's, ends at the edges that use this: whatever it raises is the answer to the
request that provoked it. That includes SystemExit (`sys.exit()` in a forward) and whatever else is no Exception: a
caller's rows must not end the node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from learning_at_home.errors import ExpertFailed, LearningAtHomeError, NonFiniteTensor
from learning_at_home.tensors.finite import is_finite
from node_agent.experts.expert import Expert

# A tensor on the CPU, or all of an expert with a schema, or why there is none.
Outcome = Tensor | tuple[Tensor, ...] | LearningAtHomeError
MAX_CAUSE_CHARS = 300
_Request = TypeVar("_Request")


def in_halves(compute: Callable[[Sequence[_Request]], list[Outcome]], requests: Sequence[_Request]) -> list[Outcome]:
    """Of a batch that failed: a guilty request among N is found by about 2 log N smaller batches, not by N of one."""
    half = len(requests) // 2
    return compute(requests[:half]) + compute(requests[half:])


def not_finite(expert: Expert, *inputs: Tensor) -> LearningAtHomeError:
    """Who is to blame for an output with NaN or infinity in it."""
    if all(map(is_finite, inputs)):
        return ExpertFailed(f"{expert.uid}: the output of these inputs is not finite")
    return NonFiniteTensor(f"{expert.uid}: the inputs hold NaN or infinity; the expert takes finite numbers only")


def explained(expert: Expert, error: BaseException, *inputs: Tensor) -> LearningAtHomeError:
    """The error of one request, whose inputs are told to be at fault where they are.

    Raises a KeyboardInterrupt in the main thread again: there it is a person's, and no expert's.
    """
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
    if not all(map(is_finite, inputs)):
        return not_finite(expert, *inputs)
    if isinstance(error, LearningAtHomeError):
        return error
    cause = str(error).strip().splitlines() or [""]
    return ExpertFailed(f"{expert.uid}: {type(error).__name__}: {cause[0][:MAX_CAUSE_CHARS]}")
