"""Send work to many experts at once, take the usable answers as they come, and tell the directory who does not answer.

Synchronous; one FanOut belongs to one thread and one round. It knows nodes, messages, retries and what an answer must
look like; which experts are asked and how many answers are enough, its callers know.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec
import numpy as np
from torch import Tensor

from learning_at_home.client.compression import Compression
from learning_at_home.client.quorum import Rows
from learning_at_home.client.stats import CallStats
from learning_at_home.client.traced_round import TracedCall, TracedRound
from learning_at_home.client.tracing import Tracing
from learning_at_home.clock import Clock
from learning_at_home.directory.directory import Directory
from learning_at_home.errors import (
    CallTimeout,
    ExpertFailed,
    LearningAtHomeError,
    NodeDraining,
    NodeOverloaded,
    PeerUnreachable,
    VersionMismatch,
    WireError,
)
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import MAX_BYTES_PER_REQUEST
from learning_at_home.schema import Leaf
from learning_at_home.tensors.frames import Framed, from_frames_checked, to_frames
from learning_at_home.transport.calls import Answer, Call
from learning_at_home.transport.connections import Connections, Exchange
from learning_at_home.transport.link import chunk_bytes_of
from learning_at_home.wire.fingerprint import fingerprint
from learning_at_home.wire.messages import CHUNK_BYTES, MAX_WORK_PER_REQUEST, Codec, Operation, TensorSpec

SUSPICIOUS = (PeerUnreachable, CallTimeout, WireError, VersionMismatch)  # what makes a peer worth avoiding for a while
WORTH_AVOIDING = (*SUSPICIOUS, NodeDraining)
SILENT_S = 0.25  # a peer that was left behind sooner than this is not suspected: it had no fair chance
MIN_RETRY_S, MAX_RETRY_S = 0.05, 5.0  # a full node's hint counts within these: below is a busy loop, above is never
NO_COMPRESSION = Compression()
MAX_FRAMES_PER_REQUEST = 2_048  # of one message: half of the parts that a node takes, for tensors in many frames
MAX_RETRIES = 4  # of one task; a node that is still full then is full, and others have their turn


@dataclass(frozen=True, slots=True)
class CallContext:
    """What every expert call of a process shares. Copies of a model share it, too; it cannot be pickled."""

    project: str
    connections: Connections
    directory: Directory
    stats: CallStats
    clock: Clock
    tracing: Tracing

    def __deepcopy__(self, memo: dict[int, object]) -> CallContext:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "remote experts cannot be pickled: they hold connections; save the state_dict and connect again"
        )


class Task(msgspec.Struct, eq=False):
    """Work for one expert. Nobody else writes to the tensors, which lie on the CPU, unless they are framed already."""

    uid: str
    cell: int
    holder: PeerAddress
    operation: Operation
    tensors: tuple[Tensor, ...]
    num_rows: int
    rows: Rows  # which ones of the caller's batch, where that matters to it
    expected: TensorSpec | tuple[TensorSpec, ...]  # the one tensor of a right answer, or all that it has
    retries: int = 0  # how often a full node has been asked again
    failures: int = 0  # how often its expert has raised
    traced: TracedCall | None = None  # FanOut's
    framed: Framed | None = None  # its tensors as they travel, where they were framed already


class Result(msgspec.Struct, frozen=True, eq=False):
    """What became of a task: its tensor, or its tensors where they need not be one, or the error."""

    task: Task
    tensor: Tensor | None
    error: LearningAtHomeError | None
    tensors: tuple[Tensor, ...] = ()


class FanOut:
    """One round of calls.

    `insist`: there is nobody else to ask. A full node is asked again after its hint, and one whose connection was lost
    once more at once, as long as the deadline allows; by its id the node knows work that it has done already.
    `tries`: so many times an expert that raises is asked, at once and as another call each time, since a node answers
    the same one from memory. What raised may have been of the moment, and nobody else has its gradient.
    """

    def __init__(
        self,
        context: CallContext,
        exchange: Exchange,
        deadline: float,
        *,
        insist: bool = False,
        tries: int = 1,
        compression: Compression = NO_COMPRESSION,
        traced: TracedRound | None = None,
    ) -> None:
        self._traced = traced
        self.context = context
        self.exchange = exchange
        self.deadline = deadline
        self._insist = insist
        self._tries = tries
        self._compression = compression
        self._later: list[tuple[float, int, Call]] = []  # heap: when to send, in which order
        self._order = itertools.count()
        self._reconnected: set[int] = set()  # calls that were sent over a second connection
        self._answered: set[bytes] = set()  # peers that said anything in this round

    def ask(self, tasks: Iterable[Task]) -> list[Call]:
        """Send the tasks: one message per node, more only when it would pass the size limit. Returns their calls.

        Raises UsageError when values do not fit the compression that was chosen.
        """
        calls = list(map(self._call, tasks))
        self._send(calls)
        return calls

    def ask_again(self, calls: Sequence[Call]) -> None:
        """Send calls of an earlier round, under the ids that they have: a node answers what it has done from memory."""
        self._send(calls)

    def ask_silent_again(self, rows: Rows) -> None:
        """Send the calls once more that these rows wait for: request or answer may be lost. A node that has only not
        come to it yet knows the call by its id, and does it once."""
        silent = [call for call in self.exchange.open_calls() if np.isin(call.task.rows, rows).any()]
        for call in silent:
            self.context.stats.retried(call.task.holder.public_key, call.task.holder.name)
            if call.task.traced is not None:
                call.task.traced = call.task.traced.again()
        self._send(silent)

    def ask_later(self, task: Task, at: float) -> None:
        """Send the task at a moment (monotonic), from within `next_result`."""
        heapq.heappush(self._later, (at, next(self._order), self._call(task)))

    def next_result(self, until: float) -> Result | None:
        """The next result, or None when `until` has passed."""
        clock = self.context.clock
        while True:
            if self._later:
                self.send_what_is_due()
            wake = min(until, self._later[0][0]) if self._later else until
            answer = self.exchange.next_answer(wake)
            if answer is not None:
                result = self.judge(answer)
                if result is not None:
                    return result
                continue
            now = clock.monotonic_s()
            if now >= until:
                return None
            if not self.exchange.pending and wake > now:
                with self.exchange.aside:
                    time.sleep(wake - now)  # nothing can arrive: somebody's hint, or the directory, is all there is

    def next_due(self) -> float:
        """When the next task that waits should be sent; infinity when none does."""
        return self._later[0][0] if self._later else math.inf

    def leave_behind(self, patience_s: float) -> list[Task]:
        """Give up on what is open. Returns the tasks that were silent for `patience_s`, and suspects their peers."""
        now = self.context.clock.monotonic_s()
        open_calls = self.exchange.open_calls()
        silent = [call for call in open_calls if now - call.sent >= max(patience_s, SILENT_S)]
        for call in open_calls:
            holder = call.task.holder
            self.context.stats.failed(holder.public_key, holder.name)
            if call.task.traced is not None:
                call.task.traced.left_behind()
        for call in silent:
            key = call.task.holder.public_key
            if key not in self._answered and not self._heard_since(key, call.sent):
                self.context.directory.report_failure(key, now)
        self.exchange.abandon()
        self._later.clear()
        return [call.task for call in silent]

    def judge(self, answer: Answer) -> Result | None:
        """The result of an answer, counted, with the directory told whether its peer is alive.

        None when the call goes out again instead.
        """
        now = self.context.clock.monotonic_s()
        task: Task = answer.call.task
        holder = task.holder
        tensor, error = None, answer.error
        tensors: tuple[Tensor, ...] = ()
        if error is None:
            try:
                if type(task.expected) is tuple:
                    tensors = _all_usable(task, task.expected, answer)
                else:
                    tensor = _usable(task, answer)
            except LearningAtHomeError as unusable:
                error = unusable
        if task.traced is not None:
            _trace(task.traced, answer, error)
        if error is None:
            load_ms = 0.0 if answer.reply is None else answer.reply.load_ms
            self.context.stats.answered(holder.public_key, holder.name, task.num_rows, answer.seconds, now, load_ms)
            self._count_updates(task, answer, now)
        elif self._goes_out_again(answer, error, now):
            self.context.stats.retried(holder.public_key, holder.name)
            return None
        else:
            self.context.stats.failed(holder.public_key, holder.name)
        if isinstance(error, CallTimeout) and self._heard_since(holder.public_key, answer.call.sent):
            pass  # the call is lost, or waits behind others: its node lives
        elif isinstance(error, WORTH_AVOIDING):
            self._avoid(holder.public_key, error, now)
        elif holder.public_key not in self._answered:
            self._answered.add(holder.public_key)
            self.context.directory.report_success(holder.public_key)
        return Result(task, tensor, error, tensors)

    def _count_updates(self, task: Task, answer: Answer, now: float) -> None:
        assert answer.reply is not None, "it was usable"
        forward = task.holder.public_key, task.uid, fingerprint(answer.call.frames[0])
        self.context.stats.told_updates(forward, task.operation, answer.reply.updates, now)

    def _call(self, task: Task) -> Call:
        """The task with its tensors as frames."""
        if self._traced is not None and task.traced is None:
            task.traced = self._traced.call(task.uid, task.holder, task.num_rows)
        if task.traced is not None:
            task.traced.issued()
        specs, frames = task.framed or frame(task.tensors, task.holder, self._compression.request)
        return Call(task.uid, task.operation, specs, frames, task)

    def _heard_since(self, public_key: bytes, since: float) -> bool:
        """Whether the peer has answered any call of this process, perhaps of another round."""
        pace = self.context.stats.pace(public_key)
        return pace is not None and pace.told_s >= since

    def _avoid(self, public_key: bytes, error: LearningAtHomeError, now: float) -> None:
        if isinstance(error, NodeDraining):
            # It answers, and will serve nobody again: out of the views until its announcement says so itself.
            self._answered.add(public_key)
        self.context.directory.report_failure(public_key, now)

    def _goes_out_again(self, answer: Answer, error: LearningAtHomeError, now: float) -> bool:
        call, at = answer.call, now
        task: Task = call.task
        if isinstance(answer.error, ExpertFailed) and task.failures + 1 < self._tries:
            task.failures += 1
            call = Call(call.uid, call.operation, call.tensors, call.frames, task)
        elif not self._insist:
            return False
        elif isinstance(error, NodeOverloaded):
            hinted = retry_at(task, error, now)
            if hinted is None or hinted >= self.deadline:
                return False
            task.retries += 1
            at = hinted
        elif isinstance(error, PeerUnreachable) and call.call_id not in self._reconnected:
            self._reconnected.add(call.call_id)
        else:
            return False
        if task.traced is not None:
            task.traced = task.traced.again()
        heapq.heappush(self._later, (at, next(self._order), call))
        return True

    def send_what_is_due(self) -> bool:
        """Send the tasks that waited for their moment, if there are any. `next_result` does it by itself."""
        now = self.context.clock.monotonic_s()
        due = []
        while self._later and self._later[0][0] <= now:
            due.append(heapq.heappop(self._later)[2])
        if due:
            self._send(due)
        return bool(due)

    def _send(self, calls: Sequence[Call]) -> None:
        project, codec, reply_codec = self.context.project, self._compression.request, self._compression.reply
        for message in (calls,) if len(calls) == 1 else _messages(calls):
            self.exchange.send(message[0].task.holder, project, message, self.deadline, codec, reply_codec)
            for call in message:
                if (traced := call.task.traced) is not None:
                    traced.sent(sum(map(len, call.frames)))


def frame(tensors: Sequence[Tensor], holder: PeerAddress, codec: Codec) -> Framed:
    """A task's tensors as they travel. Raises UsageError when values do not fit the codec."""
    largest_bytes = tensors[0].nbytes if len(tensors) == 1 else max([tensor.nbytes for tensor in tensors])
    chunk_bytes = chunk_bytes_of(holder) if largest_bytes > CHUNK_BYTES else CHUNK_BYTES
    if len(tensors) == 1:
        spec, frames = to_frames(tensors[0], codec, chunk_bytes)
        return (spec,), frames
    framed = [to_frames(tensor, codec, chunk_bytes) for tensor in tensors]
    return tuple([spec for spec, _ in framed]), [part for _, frames in framed for part in frames]


def retry_at(task: Task, error: NodeOverloaded, now: float) -> float | None:
    """When to ask a full node again; None when it was asked often enough.

    After its hint, within bounds and doubled with every retry, spread out so that its callers do not all come back at
    once.
    """
    if task.retries >= MAX_RETRIES:
        return None
    hint_s = max(MIN_RETRY_S, error.retry_after_s or 0.0)  # in this order, for NaN
    return now + min(MAX_RETRY_S, 2 * hint_s * 2.0**task.retries) * random.uniform(0.5, 1.0)


def _messages(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """The calls by node and time of issue, in messages within the limits."""
    together: dict[tuple[bytes, int], list[Call]] = {}
    for call in calls:
        together.setdefault((call.task.holder.public_key, call.issued_ms), []).append(call)
    for of_node in together.values():
        message: list[Call] = []
        size_bytes = num_frames = 0
        for call in of_node:
            num_bytes = sum(spec.num_bytes for spec in call.tensors)
            if message and (
                len(message) >= MAX_WORK_PER_REQUEST
                or size_bytes + num_bytes > MAX_BYTES_PER_REQUEST
                or num_frames + len(call.frames) > MAX_FRAMES_PER_REQUEST
            ):
                yield message
                message, size_bytes, num_frames = [], 0, 0
            message.append(call)
            size_bytes += num_bytes
            num_frames += len(call.frames)
        yield message


def _trace(traced: TracedCall, answer: Answer, error: LearningAtHomeError | None) -> None:
    read = answer.call.sent + answer.seconds
    if answer.reply is not None:
        num_bytes = sum(len(frame) for frames in answer.tensors for frame in frames)
        traced.received(num_bytes, answer.reply.queued_us, answer.reply.computed_us, at=read)
    traced.ended(error)


def _usable(task: Task, answer: Answer) -> Tensor:
    """The tensor of a reply. Raises WireError when it is not what was asked for, ExpertFailed when it is not finite."""
    specs = () if answer.reply is None else answer.reply.tensors
    if specs != (task.expected,):
        seen = ", ".join(map(str, specs)) or "nothing"
        raise WireError(f"{task.uid}: the node answers {seen} instead of {task.expected}", peer=task.holder.name)
    assert answer.reply is not None, "it has tensors"
    tensor, finite = from_frames_checked(specs[0], answer.tensors[0], answer.reply.codec)
    if not finite:
        raise ExpertFailed(f"{task.uid}: its answer holds NaN or infinity", peer=task.holder.name)
    return tensor


def _all_usable(task: Task, expected: tuple[TensorSpec, ...], answer: Answer) -> tuple[Tensor, ...]:
    """The same of a reply with any number of tensors."""
    specs = () if answer.reply is None else answer.reply.tensors
    if answer.reply is None or specs != expected:
        seen, wanted = (", ".join(map(str, given)) or "nothing" for given in (specs, expected))
        raise WireError(f"{task.uid}: the node answers {seen} instead of {wanted}", peer=task.holder.name)
    read = [
        from_frames_checked(spec, frames, answer.reply.codec)
        for spec, frames in zip(specs, answer.tensors, strict=True)
    ]
    if not all(finite for _, finite in read):
        raise ExpertFailed(f"{task.uid}: its answer holds NaN or infinity", peer=task.holder.name)
    return tuple([tensor for tensor, _ in read])


def tensors_of(result: Result) -> tuple[Tensor, ...]:
    """Of one without an error, however many its task expected."""
    return result.tensors if result.tensor is None else (result.tensor,)


def expected_of(leaves: Sequence[Leaf], num_rows: int) -> TensorSpec | tuple[TensorSpec, ...]:
    """What an answer of so many rows holds."""
    specs = tuple([TensorSpec(leaf.dtype, (num_rows, *leaf.shape)) for leaf in leaves])
    return specs[0] if len(specs) == 1 else specs
