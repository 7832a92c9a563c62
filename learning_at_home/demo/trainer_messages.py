"""What the demo's trainer tells the process that started it: one JSON object per line of its standard output."""

from __future__ import annotations

import msgspec

from learning_at_home.errors import WireError


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """The trainer is connected; of `wanted` experts `alive` are announced."""

    alive: int
    wanted: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """After a step; at most a few per second."""

    step: int
    steps: int
    loss: float  # of training, a running mean
    accuracy: float | None  # of the last evaluation on all test rows; None before the first
    rows_per_second: float  # over the last steps
    remaining_s: float | None  # None until it can be told


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """After the last evaluation. The trainer exits right afterwards."""

    accuracy: float  # on all test rows
    steps: int
    rows_per_second: float  # of training, evaluations not counted
    calls: int  # to experts, forward and backward, evaluations counted
    failures: int
    goal_reached_at_step: int | None  # the first evaluation at or above the goal
    seconds: float  # of training and evaluation


TrainerMessage = Waiting | Progress | Finished

_decoder: msgspec.json.Decoder[TrainerMessage] = msgspec.json.Decoder(TrainerMessage)


def encode_line(message: TrainerMessage) -> str:
    """Without the line's end."""
    return msgspec.json.encode(message).decode()


def decode_line(line: bytes) -> TrainerMessage:
    """Raises WireError on a line that is no message."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"not a message of the demo's trainer: {line[:200]!r}") from error
