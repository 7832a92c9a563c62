"""The node's memory of backwards: one that is sent again gets the first one's answer, never a second optimizer step.

Plain code under one lock: the data-plane thread admits, whoever computes answers. It reads no clock and knows neither
sockets nor tensors. Policy, bounds and what an attacker can do: docs/decisions/0006-backward-once.md.

**Why no id is taken twice.** A backward's id is its caller's key, its issue time and its call id. The window remembers
ids and a *floor* per caller: an unknown id is taken only when it was issued after its caller's floor. Whatever makes
the window forget an id (age, a bound), it raises that caller's floor to the id's issue time; when it forgets a caller,
it raises the floor of the caller's bucket, with which an unknown caller begins. Floors never fall. So no clock needs to
be right for this: the wall clock only decides what is refused beyond it. Others' keys can make the window forget, and
then it refuses; nothing that they do makes it take an id twice.
"""

from __future__ import annotations

import enum
import math
import secrets
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import msgspec

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S
from learning_at_home.errors import StaleRequest
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import MAX_WORK_PER_REQUEST, Failure, Reply

ANSWER_OVERHEAD_BYTES = 1_024  # header, views and bookkeeping of one kept answer: 950 were measured
SKEW_MS = round(CLOCK_SKEW_TOLERATED_S * 1000)
TIDY_EVERY = 16  # admissions; each time twice as much of what is over is forgotten as has come
TIDY_STEPS = 2 * TIDY_EVERY
SWEEP_STEPS = 256  # under one hold of the lock: about 0.1 ms
SLACK = 16  # full of answers, a window makes room for a 16th of them at once: looking who holds how much costs 1 ms


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """How much is remembered, and for how long."""

    length_s: float = 120.0  # twice the largest usual deadline, 60 s
    callers: int = 4_096  # about 2 KB each, beside their ids
    ids: int = 131_072  # about 200 bytes each
    ids_per_caller: int = 65_536  # 13 s of the 5,000 calls per second that a node can answer: over the usual deadline
    ids_granted: int = 2 * MAX_WORK_PER_REQUEST  # who holds fewer pays for nobody: a floor is no finer than a message
    answer_bytes: int = 64 * 1024 * 1024
    answer_life_s: float = 30.0  # and up to the request's deadline: for callers that try again with a later one
    buckets: int = 65_536  # floors of forgotten callers; 8 bytes each


class Admission(enum.Enum):
    """What becomes of a backward whose answer is not known yet."""

    NEW = "compute it"
    PENDING = "it is queued or being computed; its one answer will go to the newest ticket"


NEW: Final = Admission.NEW  # looking a member up costs more than the rest of a comparison
PENDING: Final = Admission.PENDING


class KeptAnswer(msgspec.Struct, frozen=True, eq=False, gc=False):
    """To be sent again as it is: the same id has the same call id."""

    message: Reply | Failure
    frames: Sequence[memoryview | bytes]
    size_bytes: int


_NEVER_APPLIED: Final = KeptAnswer(Failure(None, 0, ""), (), 0)  # stands for what `forget` has taken away
_Key = tuple[int, int]  # issue time and call id: an id within one caller


class _Caller:
    """What is remembered of one key. A work's state is its newest ticket until it is answered; None: answer gone."""

    __slots__ = ("answer_bytes", "answers", "floor_ms", "newest_ms", "order", "works")

    def __init__(self, floor_ms: int) -> None:
        self.works: dict[_Key, Ticket | KeptAnswer | None] = {}
        self.order: deque[_Key] = deque()  # as they came; may hold keys that `works` has no longer
        self.answers: deque[tuple[float, _Key]] = deque()  # when each expires, as they were answered; the same
        self.answer_bytes = 0
        self.floor_ms = floor_ms
        self.newest_ms = floor_ms  # no work was issued later


class BackwardWindow:
    """Thread-safe. Made when the process begins to take work, at `started` (monotonic seconds).

    restored: the experts' weights hold what an earlier process of this node applied.
    """

    def __init__(
        self,
        started: float,
        limits: WindowLimits | None = None,
        *,
        restored: bool = False,
        bucket_secret: bytes | None = None,
    ) -> None:
        self.limits = limits or WindowLimits()
        self.repeated = 0  # sent again, and not applied again
        self.refused = 0  # raised StaleRequest
        self._started = started
        # By how much a caller's clock may have been ahead when it stamped what the earlier process applied.
        self._start_margin_ms = SKEW_MS if restored else 0
        self._window_ms = round(self.limits.length_s * 1000)
        self._bucket_secret = bucket_secret or secrets.token_bytes(16)  # so that nobody can aim at another's bucket
        self._lock = threading.Lock()
        self._callers: OrderedDict[bytes, _Caller] = OrderedDict()  # the least recently active first; none is empty
        self._floors_ms = array("q", [0]) * self.limits.buckets
        self._num_ids = 0  # in all `order`
        self._untidied = 0  # admissions
        self._max_ids, self._max_ids_per_caller = self.limits.ids, self.limits.ids_per_caller
        self._answer_bytes = 0

    @property
    def num_callers(self) -> int:
        return len(self._callers)

    @property
    def num_ids(self) -> int:
        return self._num_ids

    @property
    def answer_bytes(self) -> int:
        return self._answer_bytes

    def admit(self, ticket: Ticket, waited_ms: int, wall_ms: int) -> Admission | KeptAnswer:
        """NEW: it is reserved, and its caller must see to it that it ends in `answered` or `forget`.

        waited_ms: from the request, over 0 in every retry. Raises StaleRequest when it is not certain that this
        backward was never applied, or when it was and its answer is gone.
        """
        key = (ticket.issued_ms, ticket.call_id)
        with self._lock:
            caller = self._callers.get(ticket.caller)
            if caller is not None and key in caller.works:
                self._callers.move_to_end(ticket.caller)
                return self._again(caller, key, ticket)
            if caller is None:
                floor_ms = self._floors_ms[self._bucket(ticket.caller)]
                self._check(ticket, waited_ms, wall_ms, floor_ms)
                caller = self._callers[ticket.caller] = _Caller(floor_ms)
                if len(self._callers) > self.limits.callers:
                    self._forget_caller(*self._idlest())
            else:
                self._check(ticket, waited_ms, wall_ms, caller.floor_ms)
                self._callers.move_to_end(ticket.caller)
            caller.works[key] = ticket
            caller.order.append(key)
            if ticket.issued_ms > caller.newest_ms:
                caller.newest_ms = ticket.issued_ms
            self._num_ids += 1
            if self._num_ids > self._max_ids or len(caller.order) > self._max_ids_per_caller:
                self._forget_some_id(caller)
            self._untidied += 1
            if self._untidied == TIDY_EVERY:
                self._untidied = 0
                for public_key, either in ((ticket.caller, caller), self._idlest()):
                    self._tidy(public_key, either, wall_ms - self._window_ms, ticket.received, TIDY_STEPS)
            return NEW

    def answered(
        self,
        ticket: Ticket,
        message: Reply | Failure,
        frames: Sequence[memoryview | bytes],
        now: float,
        *,
        shared: bool = False,
    ) -> Ticket:
        """Keep the answer of a NEW one; returns the ticket to send it to, the newest of this id.

        Also for a failure of the computation: whether it changed the weights is then nobody's guess. shared: the frames
        lie in memory that is larger (a batch's) or will be written to again, and are copied to be kept.
        """
        key = (ticket.issued_ms, ticket.call_id)
        size_bytes = ANSWER_OVERHEAD_BYTES + (len(message.data) if isinstance(message, Reply) else 0)
        for frame in frames:
            size_bytes += len(frame)
        kept: KeptAnswer | None = None
        expires = now + self.limits.answer_life_s
        if ticket.deadline > expires:
            expires = ticket.deadline
        if size_bytes <= self.limits.answer_bytes:
            kept = KeptAnswer(message, [bytes(f) for f in frames] if shared else frames, size_bytes)
        with self._lock:
            caller = self._callers.get(ticket.caller)
            newest = None if caller is None else caller.works.get(key)
            if caller is None or not isinstance(newest, Ticket):
                return ticket  # forgotten meanwhile: its floor guards it
            caller.works[key] = kept
            if kept is not None:
                caller.answers.append((expires, key))
                caller.answer_bytes += size_bytes
                self._answer_bytes += size_bytes
                if self._answer_bytes > self.limits.answer_bytes:
                    self._make_room()
            return newest

    def forget(self, ticket: Ticket) -> Ticket:
        """A NEW one was not applied and will not be: refused at admission, or dropped from the queue.

        It leaves no trace: a retry may be computed. Returns the ticket to send the refusal to, the newest of this id.
        """
        key = (ticket.issued_ms, ticket.call_id)
        with self._lock:
            caller = self._callers.get(ticket.caller)
            newest = None if caller is None else caller.works.get(key)
            if caller is None or not isinstance(newest, Ticket):
                return ticket
            del caller.works[key]
            if caller.order[-1] == key:
                caller.order.pop()
                self._num_ids -= 1
                if not caller.order:
                    self._forget_caller(ticket.caller, caller)
            return newest

    def sweep(self, wall_ms: int, now: float) -> None:
        """Give back the memory of what is over, also when nothing comes any more. For a timer of some seconds."""
        with self._lock:
            public_keys = list(self._callers)
        for public_key in public_keys:
            more = True
            while more:
                with self._lock:
                    caller = self._callers.get(public_key)
                    more = caller is not None and self._tidy(
                        public_key, caller, wall_ms - self._window_ms, now, SWEEP_STEPS
                    )

    def _again(self, caller: _Caller, key: _Key, ticket: Ticket) -> Admission | KeptAnswer:
        state = caller.works[key]
        if state is None:
            self.refused += 1
            raise StaleRequest(
                "this backward was computed before and its answer is no longer kept; it was not applied again: "
                "do not send it again"
            )
        self.repeated += 1
        if isinstance(state, KeptAnswer):
            return state
        caller.works[key] = ticket
        return PENDING

    def _check(self, ticket: Ticket, waited_ms: int, wall_ms: int, floor_ms: int) -> None:
        """Raises StaleRequest unless an unknown id is certain not to have been applied by this node, ever."""
        issued_ms = ticket.issued_ms
        running_ms = (ticket.received - self._started) * 1000
        start_ms = wall_ms - running_ms  # by the clock as it is now: it may have been set since
        if issued_ms > wall_ms + SKEW_MS:
            why = (
                f"it was issued {(issued_ms - wall_ms) / 1000:.1f} s in the future by this node's clock; "
                "one of the two clocks is wrong"
            )
        elif issued_ms <= wall_ms - self._window_ms:
            why = (
                f"it is {(wall_ms - issued_ms) / 1000:.1f} s old by this node's clock, and this node remembers "
                f"{self.limits.length_s:.0f} s"
            )
        elif issued_ms < start_ms or (
            waited_ms and (waited_ms >= running_ms or issued_ms < start_ms + self._start_margin_ms)
        ):
            why = f"this node started {running_ms / 1000:.1f} s ago and may have applied it before that"
        elif issued_ms <= floor_ms:
            why = "this node no longer knows which backwards of that time it has applied"
        else:
            return
        self.refused += 1
        raise StaleRequest(f"this backward was not applied now: {why}; do not send it again")

    def _forget_some_id(self, newest: _Caller) -> None:
        """Make room for the id that has just come from `newest`. Who holds more than its share pays itself; else who
        has been silent for longest."""
        held, limits = len(newest.order), self.limits
        share = max(limits.ids_granted, limits.ids // len(self._callers))
        if held > limits.ids_per_caller or held > share:
            self._forget_oldest(newest)
            return
        public_key, idle = self._idlest()
        self._forget_oldest(idle)
        if not idle.order:
            self._forget_caller(public_key, idle)

    def _idlest(self) -> tuple[bytes, _Caller]:
        """The caller that has been silent for longest; never the one that is being admitted, unless it is alone."""
        return next(iter(self._callers.items()))

    def _tidy(self, public_key: bytes, caller: _Caller, stale_ms: int, now: float, steps: int) -> bool:
        """Forget ids before the window and answers that nobody waits for; whether there may be more of either."""
        old = self._forget_oldest(caller, steps, stale_ms)
        late = self._drop_answers(caller, steps, now)
        if not caller.order:
            self._forget_caller(public_key, caller)
            return False
        return old == steps or late == steps

    def _forget_oldest(self, caller: _Caller, num: int = 1, until_ms: float = math.inf) -> int:
        """Forget what came first and was issued by then, which raises the caller's floor; how many."""
        order, works, freed_bytes = caller.order, caller.works, 0
        for done in range(num):
            if not order or order[0][0] > until_ms:
                num = done
                break
            key = order.popleft()
            state = works.pop(key, _NEVER_APPLIED)
            if state is _NEVER_APPLIED:
                continue
            if key[0] > caller.floor_ms:
                caller.floor_ms = key[0]
            if isinstance(state, KeptAnswer):
                freed_bytes += state.size_bytes
        self._num_ids -= num
        caller.answer_bytes -= freed_bytes
        self._answer_bytes -= freed_bytes
        return num

    def _drop_answers(self, caller: _Caller, num: int = 1, now: float = math.inf) -> int:
        """Drop what was answered first and nobody waits for any more, so that a retry is refused; how many."""
        answers, works, freed_bytes = caller.answers, caller.works, 0
        for done in range(num):
            if not answers:
                num = done
                break
            expires, key = answers[0]
            state = works.get(key)
            if isinstance(state, KeptAnswer):
                if expires > now:
                    num = done
                    break
                works[key] = None
                freed_bytes += state.size_bytes
            answers.popleft()
        caller.answer_bytes -= freed_bytes
        self._answer_bytes -= freed_bytes
        return num

    def _forget_caller(self, public_key: bytes, caller: _Caller) -> None:
        floor_ms = caller.newest_ms if caller.works else caller.floor_ms
        bucket = self._bucket(public_key)
        if floor_ms > self._floors_ms[bucket]:
            self._floors_ms[bucket] = floor_ms
        self._num_ids -= len(caller.order)
        self._answer_bytes -= caller.answer_bytes
        del self._callers[public_key]

    def _bucket(self, public_key: bytes) -> int:
        digest = blake2b(public_key, digest_size=8, key=self._bucket_secret).digest()
        return int.from_bytes(digest, "little") % self.limits.buckets

    def _make_room(self) -> None:
        """Who holds more answers than the level at which all would fit gives up its oldest; the others keep all."""
        room = self.limits.answer_bytes - self.limits.answer_bytes // SLACK
        holders = sorted(
            (caller for caller in self._callers.values() if caller.answer_bytes), key=lambda caller: caller.answer_bytes
        )
        for position, caller in enumerate(holders):
            level = room // (len(holders) - position)
            while caller.answer_bytes > level:
                self._drop_answers(caller)
            room -= caller.answer_bytes
