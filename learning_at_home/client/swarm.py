"""A trainer's connection to a swarm: where remote experts, layers, reports and statistics come from.

Synchronous face; discovery and telemetry run on a background thread (membership.py), calls on the caller's own thread.
Nothing here is in a training step except `living`, a look into memory.
"""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, SupportsFloat

import torch
from torch import Tensor, nn

from learning_at_home.client.access import (
    check_way_in,
    key_bytes,
    parse_project_url,
    peer_cache_of,
    reach_coordinator,
    wanted_project,
)
from learning_at_home.client.async_calls import AsyncCalls
from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import CallContext
from learning_at_home.client.living import POLL_S, LivingExperts
from learning_at_home.client.membership import Membership
from learning_at_home.client.pipeline import BatchT, Pipeline
from learning_at_home.client.probing import Prober
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.reporting import ReportQueue, link_of_trainer
from learning_at_home.client.shared_group import STARTUP_TIMEOUT_S, SharedParameters
from learning_at_home.client.sinks import Sink, Sinks
from learning_at_home.client.stats import CallStats, SwarmStats
from learning_at_home.client.tracing import MAX_SPANS, Trace, Tracing
from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_messages import MAX_METRICS, MAX_NAME_CHARS, Report, TrainerTelemetry
from learning_at_home.directory.directory import LayerView
from learning_at_home.directory.mirror import DirectorySource, Mirror
from learning_at_home.errors import NotEnoughExperts, UsageError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.tensors.freed_memory import keep_freed_memory
from learning_at_home.transport.connections import Connections

log = logging.getLogger(__name__)

MISSING_SHOWN = 8


class Swarm:
    """`with Swarm.connect("https://coordinator.example/p/digits") as swarm: ...`

    Also without `with`: `close` it, or let the interpreter's end do so. Any thread may use it, also one that runs an
    event loop. What was joined: `project` (its record), `dashboard_url` (None without a coordinator); as whom:
    `identity`. What is reported belongs to the run named `run`, by its first 80 characters; it may be set anew.
    """

    def __init__(
        self,
        project: ProjectRecord,
        calls: CallContext,
        identity: Identity,
        *,
        run: str | None = None,
        reports: ReportQueue | None = None,
        membership: Membership | None = None,
        mirror: Mirror | None = None,
        dashboard_url: str | None = None,
    ) -> None:
        """For `connect` and for tests. Takes over `calls` and `membership`: closing the swarm closes them."""
        self.project = project
        self.calls = calls
        self.identity = identity
        self.run = run or identity.name
        self.dashboard_url = dashboard_url
        self.asynchronous = AsyncCalls(calls)
        self._mirror = mirror or Mirror(calls.directory, calls.clock)
        self._mirror.on_suspicion = Prober(calls, self.asynchronous).suspected
        self._reports = reports or ReportQueue()
        self._sinks = Sinks()
        explore = membership.explore if membership else None
        self._living = {layer.prefix: LivingExperts(calls, layer, explore) for layer in project.layers}
        # Weak, because experts keep their swarm alive and not the other way round.
        self._experts: weakref.WeakValueDictionary[ExpertUid, RemoteExpert] = weakref.WeakValueDictionary()
        self._finalizer = weakref.finalize(
            self, _close, membership, self.asynchronous, calls.connections, self._sinks, os.getpid()
        )

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        bootstrap: Sequence[str] = (),
        project: str | Path | ProjectRecord | None = None,
        coordinator_key: str | bytes | None = None,
        identity: Identity | Path | None = None,
        run: str | None = None,
        timeout_s: float = 15.0,
        unencrypted: bool = False,
    ) -> Swarm:
        """A swarm, joined, with what is alive known. Experts may still be missing: `wait_until_alive`.

        `url`: a coordinator's project, `https://host/p/digits`; with `bootstrap` too, those peers are used when the
        coordinator is down. Without it: `bootstrap` ("host:port" of any peers of the DHT) and `project`: its id (the
        record then comes from the DHT), a record, or a TOML file. `coordinator_key`, hex: of several coordinators that
        publish such a project, this one is meant, and at `url` no other may answer. `identity`: a key, or the file that
        keeps one; by default a new key for this process. `run` names the training on the dashboard. `unencrypted`: call
        nodes that take no encrypted connections, too (`lah node --unencrypted`, in one's own rack). Raises ConfigError,
        CoordinatorUnreachable, UnknownProject, AmbiguousProject or BootstrapFailed.
        """
        deadline = time.monotonic() + timeout_s
        keep_freed_memory()
        check_way_in(url, bootstrap, project)
        key, clock = key_bytes(coordinator_key), SystemClock()
        me = Identity.load_or_create(identity) if isinstance(identity, Path) else identity or Identity.generate()
        address = parse_project_url(url) if url is not None else None
        access = reach_coordinator(address, clock, key, bool(bootstrap), timeout_s) if address else None
        wanted = access.record if access else wanted_project(project, address)
        peers = tuple(dict.fromkeys([*(access.bootstrap if access else ()), *bootstrap]))
        calls_stats, reports = CallStats(), ReportQueue()
        connections = Connections(me, clock, unencrypted=unencrypted)
        membership = Membership(me, clock, peers, wanted, key, peer_cache_of(wanted, peers))
        if address is not None:
            trainer = _TelemetrySource(calls_stats, connections, clock)
            expected = access.coordinator_public_key if access else (key.hex() if key else None)
            where = address
            membership.link = lambda: link_of_trainer(where, me, trainer.read, reports, expected)
        try:
            joined = membership.start(max(1.0, deadline - time.monotonic()))
        except BaseException:
            connections.close()
            raise
        calls = CallContext(joined.record.id, connections, joined.directory, calls_stats, clock, Tracing(clock))
        dashboard_url = access.dashboard_url if access else None
        swarm = cls(
            joined.record,
            calls,
            me,
            run=run,
            reports=reports,
            membership=membership,
            mirror=joined.mirror,
            dashboard_url=dashboard_url,
        )
        log.info("joined project %s as %s; live page: %s", joined.record.id, me.name, dashboard_url or "none")
        return swarm

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What the project's layers are made of."""
        return self.project.layers

    def layer(self, prefix: str) -> LayerView:
        """Who serves a layer now, as far as this process knows. Raises UnknownLayer."""
        self.project.layer(prefix)
        return self.calls.directory.layer(prefix)

    def directory_source(self) -> DirectorySource:
        """Where what this process knows of the nodes comes from, "mirror" or "dht", and how many seconds old it is."""
        return self._mirror.source(self.calls.clock.monotonic_s())

    def living(self, prefix: str) -> LivingExperts:
        """The layer's living experts, for gates. Raises UnknownLayer."""
        self.project.layer(prefix)
        return self._living[prefix]

    def expert(self, uid: ExpertUid | str) -> RemoteExpert:
        """One expert, the same object for as long as somebody holds it. Raises InvalidUid or UnknownLayer."""
        parsed = uid if isinstance(uid, ExpertUid) else ExpertUid.parse(uid)
        expert = self._experts.get(parsed)
        if expert is None:
            expert = self._experts[parsed] = RemoteExpert(self, parsed)
        return expert

    def shared(
        self,
        layer: str,
        parameters: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        every: int = 50,
        background: bool = False,
        deadline_s: float | None = None,
        compression: Compression | str | tuple[str, str] = "none",
        timeout_s: float = STARTUP_TIMEOUT_S,
        fill_missing: bool = False,
    ) -> SharedParameters:
        """The model's own parameters, shared with the other trainers: `shared = swarm.shared("trunk", model)`.

        Then `shared.step()` after each `optimizer.step()`. `parameters`: a module, or pairs of a name and a tensor of
        any shape. See SharedParameters for the rest and for what it raises, and docs/several-trainers.md.
        """
        return SharedParameters(
            self,
            layer,
            parameters,
            every=every,
            background=background,
            deadline_s=deadline_s,
            compression=compression,
            timeout_s=timeout_s,
            fill_missing=fill_missing,
        )

    def wait_until_alive(
        self,
        layer: str | None = None,
        num_experts: int | None = None,
        fraction: float = 1.0,
        timeout_s: float = 60.0,
    ) -> int:
        """How many experts live, once each layer (or the one named) has `num_experts`, or a fraction of its cells.

        Raises NotEnoughExperts, with those that are missing, when that takes longer than `timeout_s`.
        """
        layers = self.layers if layer is None else (self.project.layer(layer),)
        deadline = time.monotonic() + timeout_s
        while True:
            alive = {spec.prefix: self.layer(spec.prefix).num_alive for spec in layers}
            short = [spec for spec in layers if alive[spec.prefix] < _wanted_experts(spec, num_experts, fraction)]
            if not short:
                return sum(alive.values())
            if time.monotonic() >= deadline:
                missing = "; ".join(self._missing(spec, _wanted_experts(spec, num_experts, fraction)) for spec in short)
                raise NotEnoughExperts(f"after {timeout_s:g} s: {missing}")
            time.sleep(POLL_S)

    def report(self, step: int, **metrics: SupportsFloat) -> None:
        """Put figures of a step on the dashboard, and into sinks: `swarm.report(step, loss=loss)`.

        It never waits for the network. NaN and infinity are left out of the dashboard. While the coordinator is away
        the newest 1,024 reports wait; without one they go nowhere. Raises UsageError for what is no number, more than
        16 metrics, or a negative step.
        """
        if step < 0 or len(metrics) > MAX_METRICS or any(len(name) > MAX_NAME_CHARS for name in metrics):
            raise UsageError(
                f"report(step={step}, {len(metrics)} metrics): steps count from 0, metrics are {MAX_METRICS} at most, "
                f"with names of {MAX_NAME_CHARS} characters at most"
            )
        values = {name: _number(name, value) for name, value in metrics.items()}
        self._sinks.put(int(step), values)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._reports.put(Report(self.run[:MAX_NAME_CHARS], int(step), finite))

    def add_sink(self, sink: Sink) -> None:
        """Tell `lah.CsvSink(path)`, `lah.TensorBoardSink(folder)` or a function what is reported from now on.

        It is called as `sink(step, metrics)` in the thread that reports. What it raises is logged, once.
        """
        self._sinks.add(sink)

    def pipeline(
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
    ) -> Pipeline[BatchT]:
        """`for step in swarm.pipeline(batches, model, loss, optimizer): print(step.loss)`: 8 batches are under way.

        `loss(model, batch)`, a scalar, runs on threads, with copies of the model; updates of its own parameters are
        made here, in the order of the batches or as they are done. What that means, and of errors: Pipeline.
        `progress`: a bar or line on standard error; None: on a terminal. Raises ConfigError or UsageError.
        """
        if not self._finalizer.alive:
            raise UsageError("the swarm is closed")
        return Pipeline(
            batches,
            model,
            loss,
            optimizer,
            in_flight=in_flight,
            clip_norm=clip_norm,
            tolerate=tolerate,
            in_order=in_order,
            progress=progress,
        )

    def stats(self) -> SwarmStats:
        """Counts and latencies of this process's calls, and which nodes it leaves alone for a while."""
        now = self.calls.clock.monotonic_s()
        left_alone_s = {peer.public_key: peer.until_s - now for peer in self.calls.directory.suspected(now)}
        return self.calls.stats.snapshot(now, self.calls.connections.late_answers, left_alone_s)

    def trace(self, max_spans: int = MAX_SPANS) -> Trace:
        """`with swarm.trace() as t: step()`, then `print(t.text())`: what each call of a step went through.

        Also as JSON (`t.to_json()`) and for chrome://tracing or Perfetto (`t.save("step.json")`); docs/tracing.md.
        """
        return self.calls.tracing.trace(max_spans)

    def close(self) -> None:
        """Leave the swarm; the last reports get a second. May be called twice. Expert calls then raise UsageError."""
        self._finalizer()

    def __enter__(self) -> Swarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Swarm:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Swarm, and a model with remote experts, cannot be pickled: they hold connections; save the model's "
            "state_dict(), and connect again in the other process"
        )

    def __repr__(self) -> str:
        state = "connected" if self._finalizer.alive else "closed"
        return f"<Swarm of project {self.project.id}, {state} as {self.identity.name}>"

    def _missing(self, spec: LayerSpec, wanted: int) -> str:
        holders = self.layer(spec.prefix).holders
        vacant = [str(spec.cells.uid(spec.prefix, cell)) for cell, holder in enumerate(holders) if holder is None]
        shown = ", ".join(vacant[:MISSING_SHOWN]) + (" ..." if len(vacant) > MISSING_SHOWN else "")
        return f"layer {spec.prefix} has {len(holders) - len(vacant)} of {wanted} experts alive (nobody serves {shown})"


class _TelemetrySource:
    """The trainer's figures for the coordinator."""

    def __init__(self, stats: CallStats, connections: Connections, clock: SystemClock) -> None:
        self._stats = stats
        self._connections = connections
        self._clock = clock
        self._started_s = clock.wall_s()

    def read(self) -> TrainerTelemetry:
        stats = self._stats.snapshot(self._clock.monotonic_s(), self._connections.late_answers)
        return TrainerTelemetry(
            started_s=self._started_s,
            calls=stats.calls,
            failures=stats.failures,
            rows=stats.rows,
            p50_ms=stats.p50_ms,
            p95_ms=stats.p95_ms,
        )


def _wanted_experts(spec: LayerSpec, num_experts: int | None, fraction: float) -> int:
    return math.ceil(fraction * spec.cells.num_cells) if num_experts is None else num_experts


def _number(name: str, value: SupportsFloat) -> float:
    """The figure as a float; a tensor leaves its graph behind."""
    detach = getattr(value, "detach", None)
    try:
        return float(detach() if detach else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"report: {name} is no number: {error}") from error


def _close(
    membership: Membership | None, asynchronous: AsyncCalls, connections: Connections, sinks: Sinks, owner_pid: int
) -> None:
    if os.getpid() != owner_pid:
        return  # a forked child: the threads and sockets are its parent's
    asynchronous.close()
    if membership is not None:
        membership.close()
    connections.close()
    sinks.close()
