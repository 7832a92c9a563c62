"""Train with several batches under way at once, so that nobody waits for the way to the experts and back.

Threaded: each batch that is under way has a thread and a copy of the model's own parameters, for two backwards cannot
share one set of gradients, nor a backward outlive a step that changes its weights. Updates are made in the caller's
thread, one batch after another, in the order of the iterator. Of experts it knows only that their layers' copies follow
the model's: a loss is a function.
"""

from __future__ import annotations

import concurrent.futures
import copy
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from learning_at_home.client.progress import Progress, progress_of
from learning_at_home.client.swarm_module import SwarmModule
from learning_at_home.errors import ConfigError, LearningAtHomeError, UsageError

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256  # threads, and copies of the model
GOODBYE_S = 2.0  # how long close() waits for calls that are under way; their deadlines end them anyhow
FIRST_CODE_OF_OTHERS = 200  # docs/errors.md: 1xx is the caller's fault, and the same call fails again
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True, eq=False)
class Step(Generic[BatchT]):
    """What became of one batch, told when it was its turn."""

    number: int  # from 0, in the order of the iterator
    batch: BatchT  # as the iterator gave it
    loss: float  # NaN when it failed
    staleness: int  # updates that the local parameters have had between its forward and its own update
    seconds: float  # from its forward's start to its backward's end
    error: Exception | None  # why it failed: nothing was updated then


class Pipeline(Generic[BatchT]):
    """`for step in Pipeline(batches, model, loss, optimizer, in_flight=8): ...`, or better by `swarm.pipeline`.

    `loss(model, batch)` is a scalar tensor; it is called with a copy of the model, on a thread of the pipeline:
    autocast and the like belong inside of it. Steps come in the order of the batches, or with `in_order=False` as their
    batches are done, so that one whose calls were lost holds up nobody. Each has, by the time that it is given: run
    forward with the parameters as they were when it began, at most `in_flight` - 1 updates ago (`step.staleness`; out
    of order 2 * `in_flight` - 1, for then the oldest is waited for); run backward, by which its experts learned; and
    updated the local parameters by `optimizer.step()`, alone: `parameter.grad` is of this batch, clipped to
    `clip_norm`. Buffers (running means) are those of the latest step. With `in_flight=1` all of it is a plain loop, bit
    for bit.

    A batch is taken from the iterator only when there is room and a step is asked for. What a batch raises is raised
    when it is its turn, with the batch's number; the others go on, and `next()` gives them. Of errors of the swarm
    (not of the caller: codes 1xx) `tolerate` in a row are given as steps instead, with `error` set.

    Leaving the loop, an interrupt, `close()` and the end of `with` end it: forwards that are under way are
    not followed by a backward any more, and their threads end at once or with their calls' deadlines. An error that
    leaves the loop holds the pipeline for as long as somebody holds the error: what is under way is then finished.
    Making one raises ConfigError for a number out of its range, UsageError when the optimizer has others' parameters.
    """

    def __init__(
        self,
        batches: Iterable[BatchT],
        model: nn.Module,
        loss: Callable[[nn.Module, BatchT], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        in_flight: int = 8,
        clip_norm: float | None = None,
        tolerate: int = 0,
        in_order: bool = True,
        progress: bool | None = None,
    ) -> None:
        if not 1 <= in_flight <= MAX_IN_FLIGHT:
            raise ConfigError(f"in_flight is {in_flight}; between 1 and {MAX_IN_FLIGHT} batches can be under way")
        if tolerate < 0 or (clip_norm is not None and not clip_norm > 0):
            raise ConfigError("tolerate must not be negative, and clip_norm must be positive")
        self._model = model
        self._optimizer = optimizer
        self._stepped = _parameters_of(optimizer, model)
        self._batches = iter(batches)
        self._clip_norm = clip_norm
        self._tolerate = tolerate
        self._work = _Work(loss, in_flight)
        self._free = [_Replica(model) for _ in range(in_flight)]
        self._most_stale = (in_flight if in_order else 2 * in_flight) - 1
        self._in_order = in_order
        self._started = 0  # batches taken from the iterator
        self._updates = 0
        self._failed_in_a_row = 0
        self._ended: BaseException | None = None  # why the iterator gives no more
        self._progress: Progress = progress_of(_length_of(batches), progress)
        self._finalizer = weakref.finalize(self, _Work.close, self._work)

    def __iter__(self) -> Iterator[Step[BatchT]]:
        return self

    def __next__(self) -> Step[BatchT]:
        try:
            self._fill()
            if not self._work.under_way:
                self.close()
                raise StopIteration if self._ended is None or isinstance(self._ended, StopIteration) else self._ended
            return self._finish()
        except Exception:
            raise
        except BaseException:  # an interrupt
            self.close()
            raise

    def close(self) -> None:
        """Leave what is under way behind. May be called twice."""
        self._ended = self._ended or StopIteration()
        self._progress.close()
        self._finalizer()
        self._work.under_way.clear()

    def __enter__(self) -> Pipeline[BatchT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """Start as many batches as there is room for."""
        while self._ended is None and self._free:
            try:
                batch = next(self._batches)
            except Exception as error:  # noqa: BLE001 - the caller's own iterator: raised when its turn comes
                self._ended = error
                return
            replica = self._free[-1]
            replica.load(self._model)
            self._free.pop()
            started = _Started(self._started, batch, replica, self._updates)
            self._started += 1
            self._work.start(started)

    def _finish(self) -> Step[BatchT]:
        """The batch whose turn it is, waited for and applied. Raises what it raised, if that is not tolerated."""
        place = 0 if self._in_order else self._place_of_done()
        started, future = self._work.under_way[place]
        try:
            loss, seconds = future.result()
        except Exception as error:
            self._leave(place)
            self._failed_in_a_row += 1
            error.add_note(f"batch {started.number} of the pipeline, {self._failed_in_a_row} failed in a row")
            ours = isinstance(error, LearningAtHomeError) and error.code >= FIRST_CODE_OF_OTHERS
            if not ours or self._failed_in_a_row > self._tolerate:
                raise
            step = Step(started.number, started.batch, math.nan, self._updates - started.updates, 0.0, error)
        else:
            self._leave(place)
            self._failed_in_a_row = 0
            staleness = self._updates - started.updates
            self._update(started.replica)
            step = Step(started.number, started.batch, loss, staleness, seconds, None)
        self._progress.step(self._started - len(self._work.under_way), step.loss, step.staleness)
        return step

    def _place_of_done(self) -> int:
        """The oldest that is done, of those that may overtake the ones before them; waited for if there is none.

        None may by whom one that is older would be too stale in the end, even if all came in order from there on.
        """
        candidates = []
        for place, (started, future) in enumerate(self._work.under_way):
            candidates.append(future)
            if self._updates + 1 + place - started.updates > self._most_stale:
                break
        concurrent.futures.wait(candidates, return_when=concurrent.futures.FIRST_COMPLETED)
        return next(place for place, future in enumerate(candidates) if future.done())

    def _leave(self, place: int) -> None:
        """It is under way no more; its replica is free, also when its update fails: the next batch loads it anew."""
        started, _ = self._work.under_way[place]
        del self._work.under_way[place]
        self._free.append(started.replica)

    def _update(self, replica: _Replica) -> None:
        replica.give_to(self._model)
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._stepped, self._clip_norm)
        self._optimizer.step()
        self._updates += 1


class _Replica:
    """A copy of a model: its own parameters and buffers are copies, its swarm is the same."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Be as the model is now."""
        for theirs, ours in zip(model.modules(), self.model.modules(), strict=True):
            ours.training = theirs.training
            if isinstance(theirs, SwarmModule) and isinstance(ours, SwarmModule):
                ours._follow(theirs)
        for parameter, own in zip(model.parameters(), self.model.parameters(), strict=True):
            own.copy_(parameter)
            own.requires_grad_(parameter.requires_grad)
            own.grad = None
        for buffer, copied in zip(model.buffers(), self.model.buffers(), strict=True):
            copied.copy_(buffer)

    @torch.no_grad()
    def give_to(self, model: nn.Module) -> None:
        """Let the model have this batch's gradients and buffers."""
        for parameter, own in zip(model.parameters(), self.model.parameters(), strict=True):
            parameter.grad, own.grad = own.grad, None
        for buffer, changed in zip(model.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(changed)


@dataclass(frozen=True, slots=True, eq=False)
class _Started(Generic[BatchT]):
    number: int
    batch: BatchT
    replica: _Replica
    updates: int  # of the local parameters, before its forward


class _Work(Generic[BatchT]):
    """The threads, and the batches that are under way, the oldest first. It does not know the pipeline."""

    def __init__(self, loss: Callable[[nn.Module, BatchT], Tensor], num_threads: int) -> None:
        self._loss = loss
        # Its threads are waited for when the interpreter ends, as long as their calls take.
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="pipeline")
        self._left_behind = threading.Event()
        self.under_way: deque[tuple[_Started[BatchT], Future[tuple[float, float]]]] = deque()

    def start(self, started: _Started[BatchT]) -> None:
        self.under_way.append((started, self._threads.submit(self._run, started)))

    def close(self) -> None:
        self._left_behind.set()
        futures = [future for _, future in self.under_way]
        self._threads.shutdown(wait=False, cancel_futures=True)
        late = concurrent.futures.wait([future for future in futures if not future.cancelled()], GOODBYE_S).not_done
        if late:
            log.warning("%d batches of a pipeline wait for their calls' deadlines", len(late))
        else:
            self._threads.shutdown(wait=True)

    def _run(self, started: _Started[BatchT]) -> tuple[float, float]:
        """The loss, and how long it took."""
        begin = time.monotonic()
        loss: object = self._loss(started.replica.model, started.batch)  # anybody's code: it may be anything
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError(f"the loss of batch {started.number} must be one number in a tensor, not {loss!r:.100}")
        if self._left_behind.is_set():
            raise UsageError("the pipeline was closed")
        loss.backward()
        return float(loss.detach()), time.monotonic() - begin


def _parameters_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Tensor]:
    """What the optimizer steps. Raises UsageError when that is not the model's."""
    own = {id(parameter) for parameter in model.parameters()}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sum(id(parameter) not in own for parameter in stepped)
    if strangers:
        raise UsageError(
            f"{strangers} of the optimizer's {len(stepped)} parameters are not the model's: their gradients would be "
            "lost; put everything that learns into one module"
        )
    return stepped


def _length_of(batches: object) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None
