"""Which answers of a node travel together. Pure: knows messages and routing ids, no sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from learning_at_home.errors import LearningAtHomeError
from learning_at_home.wire.messages import (
    MAX_HEADER_BYTES,
    MAX_MESSAGE_CHARS,
    MAX_WORK_PER_REQUEST,
    Answers,
    Failure,
    Reply,
)

ANSWER_BYTES = 1_024  # more than a small answer's entry in a header takes beside its data or words
Frames = Sequence[memoryview | bytes]
QueuedAnswer = tuple[bytes, Reply | Failure, Frames]  # by routing id


def failure_of(call_id: int | None, error: LearningAtHomeError) -> Failure:
    """An error as it crosses the wire: its code, words and retry hint."""
    retry_after_ms = None if error.retry_after_s is None else round(error.retry_after_s * 1000)
    return Failure(call_id, error.code, error.message[:MAX_MESSAGE_CHARS], retry_after_ms)


def in_messages(answers: deque[QueuedAnswer]) -> Iterator[tuple[bytes, Reply | Failure | Answers, Frames]]:
    """The messages of what is queued, which leaves the queue.

    Small answers to one caller that follow one another travel together: a message costs more than an answer. Others may
    add to the queue meanwhile.
    """
    while answers:
        routing_id, message, frames = answers.popleft()
        if frames or not answers:
            yield routing_id, message, frames
            continue
        small = {routing_id: [message]}
        while answers and not answers[0][2]:
            routing_id, message, _ = answers.popleft()
            small.setdefault(routing_id, []).append(message)
        for routing_id, of_caller in small.items():
            for together in _within_a_header(of_caller):
                yield routing_id, together[0] if len(together) == 1 else Answers(tuple(together)), ()


def _within_a_header(answers: Sequence[Reply | Failure]) -> Iterator[list[Reply | Failure]]:
    together: list[Reply | Failure] = []
    room = MAX_HEADER_BYTES
    for message in answers:
        size = ANSWER_BYTES + (len(message.data) if isinstance(message, Reply) else 4 * len(message.message))
        if together and (size > room or len(together) == MAX_WORK_PER_REQUEST):
            yield together
            together, room = [], MAX_HEADER_BYTES
        together.append(message)
        room -= size
    yield together
