"""A round of a shared group: send what changed, take what others did, fill hosts that have less than our copy.

Synchronous, one thread at a time. Each chunk goes its own way through a round, so that a silent host holds up nobody
else's. The model is not touched here: its copies are (shared_copy.py). Policy:
docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import NO_COMPRESSION, CallContext, FanOut, Result, Task, frame
from learning_at_home.client.shared_copy import ChunkCopy, Doubtful
from learning_at_home.errors import (
    CallTimeout,
    LearningAtHomeError,
    NetworkError,
    SpecMismatch,
    StaleRequest,
    UnknownExpert,
    WireError,
)
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec
from learning_at_home.shared_parameters import HEADER_SIZE, MAX_FILL, MAX_ORIGIN, MAX_VERSION, NOTE_SIZE, Meaning, Note
from learning_at_home.tensors.frames import DTYPES, from_frames
from learning_at_home.transport.calls import Call
from learning_at_home.wire.messages import Codec, Operation, TensorSpec

log = logging.getLogger(__name__)

IN_DOUBT = (NetworkError, WireError)  # errors after which the host may have applied the change, or may not
SETTLED_AFTER_S = 110.0  # a host remembers ids for 120 s: after that it cannot tell either
_ALL_ROWS = np.empty(0, np.int64)

_Ask = Task | Call  # a Call is sent again, a Task for the first time
_Outcome = tuple[Result, Call | None]  # no call: a round that was broken off while it was sent
_Refusals = dict[int, SpecMismatch | None]  # by cell: what those who answered last said
_Way = Generator[_Ask, _Outcome, None]
_Sending = Generator[_Ask, _Outcome, bool]  # whether a state may be taken: nothing is in doubt


@dataclass(slots=True)
class Counts:
    """What SharedStats shows; see there."""

    rounds: int = 0
    changes: int = 0
    taken: int = 0
    failures: int = 0
    in_doubt: int = 0
    fills: int = 0
    set_back: int = 0
    replaced: int = 0
    skipped: int = 0
    staleness: int = 0
    causes: dict[int, LearningAtHomeError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SharedStats:
    """Of one trainer's copy of a shared group. Totals, in chunks where nothing else is said."""

    rounds: int  # of exchanges with the swarm
    changes: int  # that hosts took
    taken: int  # states that the model followed
    failures: int  # exchanges of a chunk that failed; what it changed went with a later round, or will
    in_doubt: int  # changes that a host may not have: nobody could tell any more, so they were not sent again
    fills: int  # of hosts, with this trainer's copy
    set_back: int  # hosts found with nothing, with less than this trainer's copy, or filled by another trainer
    replaced: int  # times that a host had been filled by another trainer, with a copy that is no older than ours: taken
    skipped: int  # rounds, since the one before was still under way
    staleness: float  # mean number of updates that were made between taking a state and changing it
    versions: tuple[int, ...]  # of the state last taken, per chunk
    causes: Mapping[int, LearningAtHomeError]  # the last failure of chunks whose last exchange failed


class SharedRound:
    """Makes the rounds of one group."""

    def __init__(
        self,
        calls: CallContext,
        layer: LayerSpec,
        fingerprint: int,
        copies: Sequence[ChunkCopy],
        compression: Compression = NO_COMPRESSION,
        *,
        largest: Sequence[float],
    ) -> None:
        """`largest`: by cell, what its numbers may not exceed."""
        self._calls = calls
        self._layer = layer
        self._fingerprint = fingerprint
        self._compression = compression
        self._codec: Codec = "none"  # of what is asked now
        self._dtype = DTYPES[layer.dtype]
        self._largest = largest
        self.copies = copies
        self.counts = Counts()

    def run(self, model_CL: Tensor, deadline: float) -> None:
        """Exchange every chunk with its host, as far as they answer before the deadline (monotonic seconds).

        `model_CL` [C, L] is what was trained, and is not written to by anybody. Raises SpecMismatch when the swarm
        holds another model, as most hosts say; what else fails is counted, and left to the next round.
        """
        self.counts.rounds += 1
        behind: list[ChunkCopy] = []
        ways = [self._exchange(copy, model_CL[copy.cell], behind) for copy in self.copies]
        refusals = self._drive(ways, deadline, self._compression)
        if behind:
            self.counts.set_back += len(behind)
            cells = ", ".join(str(copy.cell) for copy in behind)
            log.warning(
                "layer %s: the hosts of chunks %s have nothing, or were filled by others since (they were lost and "
                "came back empty): filling them with this trainer's copy, where it is the newer",
                self._layer.prefix,
                cells,
            )
            filled = self._drive([self._fill(copy, model_CL[copy.cell]) for copy in behind], deadline, NO_COMPRESSION)
            refusals.update(filled)
        _raise_what_most_say(refusals)

    def read(self, deadline: float) -> dict[int, tuple[Note, Tensor]]:
        """By cell, the content of the chunks whose hosts answer, and what it is. Raises SpecMismatch."""
        found: dict[int, tuple[Note, Tensor]] = {}

        def look(copy: ChunkCopy) -> _Way:
            holder = self._holder(copy)
            if holder is None:
                return
            result, _ = yield self._read(copy, holder)
            if (held := self._held(copy, result)) is not None:
                found[copy.cell] = held

        _raise_what_most_say(self._drive([look(copy) for copy in self.copies], deadline, NO_COMPRESSION))
        return found

    def fill(self, copies: Iterable[ChunkCopy], model_CL: Tensor, deadline: float) -> None:
        """Give hosts our copy, with its version; where a trainer's is no older, take that. Raises SpecMismatch."""
        ways = [self._fill(copy, model_CL[copy.cell]) for copy in copies]
        _raise_what_most_say(self._drive(ways, deadline, NO_COMPRESSION))

    def _drive(self, ways: Sequence[_Way], deadline: float, compression: Compression) -> _Refusals:
        """Let every chunk go its way: each asks, and goes on with the result."""
        self._codec = compression.request
        refusals: _Refusals = {}
        with self._calls.connections.exchange() as exchange:
            fanout = FanOut(self._calls, exchange, deadline, insist=True, compression=compression)
            under_way: dict[int, tuple[_Way, Task, Call | None]] = {}  # by the task that each waits for

            def ask(asked: Sequence[tuple[_Ask, _Way]]) -> None:
                new = [(what, way) for what, way in asked if isinstance(what, Task)]
                under_way.update((id(task), (way, task, None)) for task, way in new)
                for (task, way), call in zip(new, fanout.ask([task for task, _ in new]), strict=True):
                    under_way[id(task)] = way, task, call
                for what, way in asked:
                    if isinstance(what, Call):
                        under_way[id(what.task)] = way, what.task, what
                        fanout.ask_again((what,))

            try:
                ask([(what, way) for way in ways if (what := next(way, None)) is not None])
                while under_way:
                    result = fanout.next_result(deadline + 1.0)  # every call answers at its deadline at the latest
                    if result is None:
                        break
                    if result.error is None or isinstance(result.error, SpecMismatch):
                        refusals[result.task.cell] = result.error
                    way, _, call = under_way.pop(id(result.task))
                    with contextlib.suppress(StopIteration):
                        ask([(way.send((result, call)), way)])
            finally:  # also at Ctrl-C: what was sent may have been applied
                for way, task, call in under_way.values():
                    silent = Result(task, None, CallTimeout(f"{task.uid}: no answer in this round"))
                    with contextlib.suppress(StopIteration):
                        way.send((silent, call))
        return refusals

    def _exchange(self, copy: ChunkCopy, model_L: Tensor, behind: list[ChunkCopy]) -> _Way:
        """One chunk's round. Whose host is older than the copy is put into `behind`."""
        holder = self._holder(copy)
        if copy.doubtful is not None and not (yield from self._settle(copy, copy.doubtful, holder)):
            return
        if holder is None:
            return
        change_L = copy.change(model_L)
        if bool(change_L.any()) and not (yield from self._send(copy, holder, model_L, change_L)):
            return
        result, _ = yield self._read(copy, holder)
        if (held := self._held(copy, result)) is None:
            if isinstance(result.error, SpecMismatch) and copy.version:
                behind.append(copy)  # a stranger may have come first to a host that had nothing
            return
        note, values_L = held
        if note.version < copy.version or note.origin != copy.origin:
            behind.append(copy)
            return
        copy.heard(note.version)
        if note.version > copy.version:
            self.counts.taken += 1
            copy.take(values_L, note.version)

    def _send(self, copy: ChunkCopy, holder: PeerAddress, model_L: Tensor, change_L: Tensor) -> _Sending:
        try:
            task = self._write(copy, holder, self._note(Meaning.CHANGE, copy.version, copy.origin), -change_L)
        except LearningAtHomeError as error:  # a number that the codec cannot hold: nobody else's changes suffer
            self._failed(copy, error)
            return True
        lost_L: Tensor | None = None
        if self._codec != "none" and task.framed is not None:  # what the host will read instead
            specs, frames = task.framed
            lost_L = change_L + from_frames(specs[1], frames[1:], self._codec)[0, HEADER_SIZE:]
        result, call = yield task
        return self._sent(copy, result, Doubtful(call, model_L, lost_L, self._calls.clock.monotonic_s()))

    def _settle(self, copy: ChunkCopy, doubtful: Doubtful, holder: PeerAddress | None) -> _Sending:
        """Ask the host of a change without an answer again: by its id it knows whether it has applied it."""
        call: Call = doubtful.call
        task: Task = call.task
        now = self._calls.clock.monotonic_s()
        if now - doubtful.since_s > SETTLED_AFTER_S or (
            holder is not None and holder.public_key != task.holder.public_key
        ):
            self._assume_applied(copy, doubtful)
            return True
        if holder is None:
            return False
        result, _ = yield call
        copy.doubtful = None
        return self._sent(copy, result, doubtful)

    def _sent(self, copy: ChunkCopy, result: Result, change: Doubtful) -> bool:
        """What became of a change; whether that is known."""
        error = result.error
        if isinstance(error, StaleRequest) or (isinstance(error, IN_DOUBT) and change.call is None):
            self._assume_applied(copy, change)
        elif isinstance(error, IN_DOUBT):
            self._failed(copy, error)
            copy.doubtful = change
            return False
        elif result.tensor is None:
            self._failed(copy, error)  # it was not applied
        else:
            note = _note_of(result.tensor[0])
            contained_in = max(copy.version + 1, 0 if note is None else note.version)
            self.counts.changes += 1
            self.counts.staleness += contained_in - 1 - copy.version
            copy.sent(change.model_L, contained_in, change.lost_L)
        return True

    def _assume_applied(self, copy: ChunkCopy, change: Doubtful) -> None:
        self.counts.in_doubt += 1
        copy.sent(change.model_L, copy.version + 1, change.lost_L)

    def _fill(self, copy: ChunkCopy, model_L: Tensor) -> _Way:
        holder = self._holder(copy)
        if holder is None:
            return
        version, origin = min(max(1, copy.version), MAX_FILL), 1 + secrets.randbelow(MAX_ORIGIN)
        result, _ = yield self._write(copy, holder, self._note(Meaning.FILL, version, origin), model_L)
        if result.tensor is None:
            self._failed(copy, result.error)
            if isinstance(result.error, IN_DOUBT):  # if it is there, nothing of it may be sent again
                self.counts.in_doubt += 1
                copy.gave(model_L, version, origin)
            return
        if (answer := _note_of(result.tensor[0])) is not None and answer.origin == origin:
            self.counts.fills += 1
            copy.gave(model_L, version, origin)
            return
        result, _ = yield self._read(copy, holder)
        if (held := self._held(copy, result)) is not None:
            note, values_L = held
            self.counts.replaced += copy.origin != 0
            copy.adopt(values_L, note.version, note.origin)

    def _holder(self, copy: ChunkCopy) -> PeerAddress | None:
        """Whom to ask; with it a new exchange of the chunk begins."""
        self.counts.causes.pop(copy.cell, None)
        holder = self._calls.directory.layer(self._layer.prefix).holders[copy.cell]
        if holder is None:
            self._failed(copy, UnknownExpert(f"{self._layer.prefix}.{copy.cell}: no living node holds this chunk now"))
        return holder

    def _failed(self, copy: ChunkCopy, error: LearningAtHomeError | None) -> None:
        self.counts.failures += 1
        if error is not None:
            self.counts.causes[copy.cell] = error

    def _held(self, copy: ChunkCopy, result: Result) -> tuple[Note, Tensor] | None:
        """What a host answers to a look at its chunk. None, counted, when it is no answer."""
        if result.tensor is None:
            self._failed(copy, result.error)
            return None
        row = result.tensor[0]
        note, values_L = _note_of(row[:NOTE_SIZE]), row[HEADER_SIZE:]
        if note is None:
            wrong = "says nothing of what it is"
        elif note.version and note.fingerprint != self._fingerprint:
            wrong = "is of other parameters than it was asked for"
        elif note.version >= MAX_VERSION:
            wrong = "claims more updates than there can be"
        elif note.version and float(values_L.abs().max()) > self._largest[copy.cell]:
            wrong = f"has numbers over {self._largest[copy.cell]:.4g}, which the model's dtype cannot hold"
        else:
            return note, values_L
        self._failed(copy, WireError(f"{result.task.uid}: the answer {wrong}"))
        return None

    def _read(self, copy: ChunkCopy, holder: PeerAddress) -> Task:
        note = self._note(Meaning.READ, copy.version, copy.origin)
        return self._task(copy, holder, "forward", (note,), self._layer.row_shape[0])

    def _write(self, copy: ChunkCopy, holder: PeerAddress, note: Tensor, values_L: Tensor) -> Task:
        behind_header = torch.nn.functional.pad(values_L, (HEADER_SIZE, 0)).view(1, -1)
        return self._task(copy, holder, "backward", (note, behind_header), NOTE_SIZE)

    def _task(
        self,
        copy: ChunkCopy,
        holder: PeerAddress,
        operation: Operation,
        tensors: tuple[Tensor, ...],
        answered: int,
    ) -> Task:
        uid = f"{self._layer.prefix}.{copy.cell}"
        framed = frame(tensors, holder, self._codec)
        expected = TensorSpec(self._layer.dtype, (1, answered))
        return Task(uid, copy.cell, holder, operation, tensors, 1, _ALL_ROWS, expected, framed=framed)

    def _note(self, meaning: Meaning, version: int, origin: int) -> Tensor:
        return torch.tensor([Note(meaning, version, origin, self._fingerprint).to_row()], dtype=self._dtype)


def _raise_what_most_say(refusals: _Refusals) -> None:
    """That the swarm holds another model, if most of those who answered say so. Of fewer it is their chunks' failure:
    one host cannot end a training."""
    said = [error for error in refusals.values() if error is not None]
    if 2 * len(said) > len(refusals):
        raise said[0]


def _note_of(numbers: Tensor) -> Note | None:
    try:
        return Note.from_row(numbers.tolist())
    except SpecMismatch:
        return None
