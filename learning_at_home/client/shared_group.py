"""The parameters of a model that all trainers of a project share: `shared = swarm.shared("trunk", model)`.

Every few steps the trainer sends what its own steps changed and takes what the others' did: an outer step by the hosts'
optimizer over many inner ones by the trainer's (DiLoCo, Douillard et al. 2023), averaged or at once, as the project's
layer says. In the caller's thread, or beside it; the model itself changes in `step`, `sync` and `reset` only. Policy:
docs/decisions/0009-shared-parameters.md.
"""

# C chunks in use, L numbers of a chunk

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learning_at_home.client.compression import Compression, compression_of
from learning_at_home.client.shared_copy import ChunkCopy
from learning_at_home.client.shared_layout import Layout
from learning_at_home.client.shared_round import SharedRound, SharedStats
from learning_at_home.client.shared_start import start
from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec
from learning_at_home.shared_parameters import ARCHITECTURE

if TYPE_CHECKING:
    from learning_at_home.client.swarm import Swarm

log = logging.getLogger(__name__)

STARTUP_TIMEOUT_S = 60.0


class SharedParameters:
    """A trainer's copy of a shared group. Use it from the thread that trains.

    `shared.step()` after each `optimizer.step()`: with every `every`-th, changes are exchanged, for `deadline_s` at
    most; with `background=True` beside the training, which then never waits, and the others' work is taken with a later
    step. What fails, fails for its chunk only, is counted in `stats()`, and what it carried goes with the next
    exchange. After a crash at any moment each change counts once or not at all, per chunk.

    Raises ConfigError or UnknownLayer for a layer that is none of shared parameters, SpecMismatch when the parameters
    do not fit it or the swarm holds those of another model, NotEnoughExperts or ParametersMissing when the state is not
    there within `timeout_s`. `step` and `sync` raise SpecMismatch, too, and NonFiniteTensor before NaN is sent.
    """

    def __init__(
        self,
        swarm: Swarm,
        layer: str,
        parameters: torch.nn.Module | Iterable[tuple[str, Tensor]],
        *,
        every: int = 50,
        background: bool = False,
        deadline_s: float | None = None,
        compression: Compression | str | tuple[str, str] = "none",
        timeout_s: float = STARTUP_TIMEOUT_S,
        fill_missing: bool = False,
    ) -> None:
        """`parameters` take the swarm's state now; when it has none, it takes theirs.

        `fill_missing`: chunks whose hosts came back empty, with no trainer left that has a copy, take theirs as well.
        """
        self.layer: LayerSpec = swarm.project.layer(layer)
        if not self.layer.is_shared:
            raise ConfigError(
                f"layer {layer} holds experts of architecture {self.layer.architecture!r}; shared parameters need a "
                f"layer of architecture {ARCHITECTURE!r}"
            )
        self.every = every
        self.background = background
        self.deadline_s = self.layer.deadline_s if deadline_s is None else deadline_s
        if every < 1 or not self.deadline_s > 0:
            raise ConfigError(
                f"layer {layer}: every is {every} and deadline_s {self.deadline_s}; both must be positive"
            )
        named = parameters.named_parameters() if isinstance(parameters, torch.nn.Module) else parameters
        self._layout = Layout(self.layer, list(named))
        self._swarm = swarm
        self._clock = swarm.calls.clock
        model_CL = self._layout.read()
        self._layout.check_finite(model_CL)
        self._copies = [ChunkCopy(cell, model_CL[cell]) for cell in range(self._layout.num_chunks)]
        self._round = SharedRound(
            swarm.calls,
            self.layer,
            self._layout.fingerprint,
            self._copies,
            compression_of(compression, f"layer {layer}"),
            largest=[self._layout.largest(copy.cell) for copy in self._copies],
        )
        self._steps = 0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        start(self._round, model_CL, timeout_s, fill_missing, layer)
        self._follow()

    def step(self) -> bool:
        """Count a step of the optimizer, and exchange what is due; whether the model took others' work.

        When NonFiniteTensor is raised nothing was sent: `reset` takes the swarm's state instead of the spoilt one.
        """
        self._steps += 1
        if self._thread is not None and self._thread.is_alive():
            if self._steps % self.every == 0:
                self._round.counts.skipped += 1
            return False
        took = self._finish()
        if self._steps < self.every:
            return took
        return self._begin(wait=not self.background) or took

    def sync(self) -> bool:
        """Exchange now and wait for it; whether every chunk was. True after the last step: nothing is left unsent."""
        self._join()
        self._finish()
        self._begin(wait=True)
        return not self._round.counts.causes and all(copy.doubtful is None for copy in self._copies)

    def reset(self) -> None:
        """Give up what was not sent, and take the swarm's state: after NaN, or to follow the swarm by its own copy."""
        self._join()
        self._failure = None
        for copy in self._copies:
            self._round.counts.in_doubt += copy.give_up()
        self._write(torch.stack([copy.reference_L for copy in self._copies]), self._copies)
        self._begin(wait=True)

    def stats(self) -> SharedStats:
        """What has been exchanged so far."""
        counts = self._round.counts
        return SharedStats(
            rounds=counts.rounds,
            changes=counts.changes,
            taken=counts.taken,
            failures=counts.failures,
            in_doubt=counts.in_doubt,
            fills=counts.fills,
            set_back=counts.set_back,
            replaced=counts.replaced,
            skipped=counts.skipped,
            staleness=counts.staleness / counts.changes if counts.changes else 0.0,
            versions=tuple(copy.version for copy in self._copies),
            causes=dict(counts.causes),
        )

    def close(self) -> None:
        """Wait for an exchange under way, and take nothing more. What was not sent is not: `sync` first.

        What ended it goes to the log.
        """
        self._join()
        if self._failure is not None:
            log.warning("layer %s: the last exchange has failed: %s", self.layer.prefix, self._failure)

    def __enter__(self) -> SharedParameters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        layout = self._layout
        return f"<SharedParameters {self.layer.prefix}: {layout.num_numbers:,} numbers in {layout.num_chunks} chunks>"

    def _begin(self, *, wait: bool) -> bool:
        """Exchange, here or on a thread; whether the model took others' work."""
        model_CL = self._layout.read()
        self._layout.check_finite(model_CL)
        self._steps = 0
        deadline = self._clock.monotonic_s() + self.deadline_s
        if wait:
            self._round.run(model_CL, deadline)
            return self._follow()
        name = f"shared {self.layer.prefix}"
        self._thread = threading.Thread(target=self._exchange, args=(model_CL, deadline), name=name, daemon=True)
        self._thread.start()
        return False

    def _exchange(self, model_CL: Tensor, deadline: float) -> None:
        """On a thread of its own, which ends by the deadline; the copies are its until then."""
        try:
            self._round.run(model_CL, deadline)
        except BaseException as error:  # noqa: BLE001 - a thread's outermost edge: the next step raises it
            self._failure = error

    def _finish(self) -> bool:
        """Take in what an exchange beside the training brought. Raises what ended it."""
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._follow()

    def _follow(self) -> bool:
        """Let the model follow the states that were taken; whether there were any."""
        moved = [copy for copy in self._copies if copy.moved_from_L is not None]
        if not moved:
            return False
        model_CL = self._layout.read()
        for copy in moved:
            model_CL[copy.cell] = copy.moved(model_CL[copy.cell])
        self._write(model_CL, moved)
        return True

    def _write(self, model_CL: Tensor, changed: Iterable[ChunkCopy]) -> None:
        """Give the parameters these values, which for the chunks that changed may be rounded by it."""
        self._layout.write(model_CL)
        written_CL = self._layout.read()
        for copy in changed:
            copy.rounded(model_CL[copy.cell], written_CL[copy.cell])

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()  # it ends soon after its deadline
