"""Send work to many experts at once, take the usable answers as they come, and tell the directory who does not answer.

Synchronous; one FanOut belongs to one thread and one round. It knows nodes, messages, retries and what an answer must
look like; which experts are asked and how many answers are enough, its callers know.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from torch import Tensor

from learning_at_home.client.quorum import Rows
from learning_at_home.client.stats import CallStats
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
from learning_at_home.tensors.finite import is_finite
from learning_at_home.tensors.frames import from_frames, to_frames
from learning_at_home.transport.calls import Answer, Call
from learning_at_home.transport.connections import Connections, Exchange
from learning_at_home.wire.messages import MAX_WORK_PER_REQUEST, Operation, TensorSpec

SUSPICIOUS = (PeerUnreachable, CallTimeout, WireError, VersionMismatch)  # what makes a peer worth avoiding for a while
SILENT_S = 0.25  # a peer that was left behind sooner than this is not suspected: it had no fair chance
MIN_RETRY_S, MAX_RETRY_S = 0.05, 5.0  # a full node's hint counts within these: below is a busy loop, above is never
MAX_RETRIES = 4  # of one task; a node that is still full then is full, and others have their turn


@dataclass(frozen=True, slots=True)
class CallContext:
    """What every expert call of a process shares. Copies of a model share it, too; it cannot be pickled."""

    project: str
    connections: Connections
    directory: Directory
    stats: CallStats
    clock: Clock

    def __deepcopy__(self, memo: dict[int, object]) -> CallContext:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "remote experts cannot be pickled: they hold connections; save the state_dict and connect again"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Work for one expert. The tensors lie on the CPU and nobody else writes to them."""

    uid: str
    cell: int
    holder: PeerAddress
    operation: Operation
    tensors: tuple[Tensor, ...]
    rows: Rows  # of the caller's batch
    expected: TensorSpec  # the one tensor of a right answer
    retries: int = 0  # how often a full node has been asked again

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of a task: its tensor, or the error."""

    task: Task
    tensor: Tensor | None
    error: LearningAtHomeError | None


@dataclass(slots=True)
class FanOut:
    """One round of calls. `retry_overloaded`: ask a full node again after its hint, while the deadline allows."""

    context: CallContext
    exchange: Exchange
    deadline: float
    retry_overloaded: bool = False
    _pending: dict[int, tuple[Task, float]] = field(default_factory=dict)
    _later: list[tuple[float, int, Task]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _answered: set[bytes] = field(default_factory=set)  # peers that said anything in this round

    def ask(self, tasks: Iterable[Task]) -> None:
        """Send the tasks: one message per node, more only when it would pass the size limit."""
        by_node: dict[bytes, list[Task]] = {}
        for task in tasks:
            by_node.setdefault(task.holder.public_key, []).append(task)
        now = self.context.clock.monotonic_s()
        for of_node in by_node.values():
            for message in _messages(of_node):
                calls = [_call(task) for task in message]
                call_ids = self.exchange.send(message[0].holder, self.context.project, calls, self.deadline)
                self._pending.update(zip(call_ids, ((task, now) for task in message), strict=True))

    def ask_later(self, task: Task, at: float) -> None:
        """Send the task at a moment (monotonic), from within `next_result`."""
        heapq.heappush(self._later, (at, next(self._order), task))

    def next_result(self, until: float) -> Result | None:
        """The next result, or None when `until` has passed."""
        clock = self.context.clock
        while True:
            self._ask_what_is_due(clock.monotonic_s())
            wake = min(until, self._later[0][0]) if self._later else until
            answer = self.exchange.next_answer(wake) if self._pending else None
            if answer is not None:
                result = self._judge(self._pending.pop(answer.call_id)[0], answer)
                if not (self.retry_overloaded and self._retry(result)):
                    return result
                continue
            now = clock.monotonic_s()
            if now >= until:
                return None
            if not self._pending and wake > now:
                time.sleep(wake - now)  # nothing can arrive: somebody's hint, or the directory, is all there is

    def leave_behind(self, patience_s: float) -> list[Task]:
        """Give up on what is open. Returns the tasks that were silent for `patience_s`, and suspects their peers."""
        now = self.context.clock.monotonic_s()
        silent = [task for task, sent in self._pending.values() if now - sent >= max(patience_s, SILENT_S)]
        for task, _ in self._pending.values():
            self.context.stats.failed(task.holder.public_key, task.holder.name)
        for task in silent:
            if task.holder.public_key not in self._answered:
                self.context.directory.report_failure(task.holder.public_key, now)
        self._pending.clear()
        self._later.clear()
        return silent

    def _ask_what_is_due(self, now: float) -> None:
        due = []
        while self._later and self._later[0][0] <= now:
            due.append(heapq.heappop(self._later)[2])
        if due:
            self.ask(due)

    def _judge(self, task: Task, answer: Answer) -> Result:
        """The result of an answer, counted, with the directory told whether its peer is alive."""
        now = self.context.clock.monotonic_s()
        holder = task.holder
        tensor, error = None, answer.error
        if error is None:
            try:
                tensor = _usable(task, answer)
            except LearningAtHomeError as unusable:
                error = unusable
        if error is None:
            self.context.stats.answered(holder.public_key, holder.name, len(task.rows), answer.seconds, now)
        else:
            self.context.stats.failed(holder.public_key, holder.name)
        if isinstance(error, SUSPICIOUS):
            self.context.directory.report_failure(holder.public_key, now)
        elif isinstance(error, NodeDraining):
            # It answers, and will serve nobody again: out of the views until its announcement says so itself.
            self._answered.add(holder.public_key)
            self.context.directory.report_failure(holder.public_key, now)
        elif holder.public_key not in self._answered:
            self._answered.add(holder.public_key)
            self.context.directory.report_success(holder.public_key)
        return Result(task, tensor, error)

    def _retry(self, result: Result) -> bool:
        if not isinstance(result.error, NodeOverloaded):
            return False
        at = retry_at(result.task, result.error, self.context.clock.monotonic_s())
        if at is None or at >= self.deadline:
            return False
        self.ask_later(replace(result.task, retries=result.task.retries + 1), at)
        return True


def retry_at(task: Task, error: NodeOverloaded, now: float) -> float | None:
    """When to ask a full node again; None when it was asked often enough.

    After its hint, within bounds and doubled with every retry, spread out so that its callers do not all come back at
    once.
    """
    if task.retries >= MAX_RETRIES:
        return None
    hint_s = max(MIN_RETRY_S, error.retry_after_s or 0.0)  # in this order, for NaN
    return now + min(MAX_RETRY_S, 2 * hint_s * 2.0**task.retries) * random.uniform(0.5, 1.0)


def _messages(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Consecutive tasks of one node in messages within the limits."""
    message: list[Task] = []
    size_bytes = 0
    for task in tasks:
        full = len(message) >= MAX_WORK_PER_REQUEST or size_bytes + task.num_bytes > MAX_BYTES_PER_REQUEST
        if message and full:
            yield message
            message, size_bytes = [], 0
        message.append(task)
        size_bytes += task.num_bytes
    if message:
        yield message


def _call(task: Task) -> Call:
    framed = [to_frames(tensor) for tensor in task.tensors]
    return Call(
        task.uid,
        task.operation,
        tuple(spec for spec, _ in framed),
        tuple(frame for _, frames in framed for frame in frames),
    )


def _usable(task: Task, answer: Answer) -> Tensor:
    """The tensor of a reply. Raises WireError when it is not what was asked for, ExpertFailed when it is not finite."""
    specs = () if answer.reply is None else answer.reply.tensors
    if specs != (task.expected,):
        seen = ", ".join(map(str, specs)) or "nothing"
        raise WireError(f"{task.uid}: the node answers {seen} instead of {task.expected}", peer=task.holder.name)
    tensor = from_frames(task.expected, answer.tensors[0])
    if not is_finite(tensor):
        raise ExpertFailed(f"{task.uid}: its answer holds NaN or infinity", peer=task.holder.name)
    return tensor
