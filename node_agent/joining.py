"""From a configuration to a project, its peers, and the experts to host: what a node does before it serves. Async."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import msgspec
import torch

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import CoordinatorUrl, fetch_access
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import fetch_project
from learning_at_home.errors import BootstrapFailed, ConfigError, UnknownProject
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.cells import choose_vacant, named_cells
from node_agent.config import NodeConfig
from node_agent.experts.extensions import load_extensions
from node_agent.experts.memory import ExpertMemory, Fit, check_fits, count_fitting, free_device_bytes, measure

log = logging.getLogger(__name__)

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Coordinator:
    """The coordinator that a node reports to."""

    root_url: str
    public_key: str  # hex
    your_address: str
    dashboard_url: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """What is known before the DHT is joined."""

    project: ProjectRecord | None  # None: the DHT knows it
    bootstrap: tuple[str, ...]
    coordinator: Coordinator | None


async def ask_the_way(config: NodeConfig, clock: SystemClock) -> Invitation:
    """The invitation; sets the clock by the coordinator's time hint. Raises CoordinatorUnreachable, UnknownProject or
    ConfigError."""
    if config.coordinator is None:
        record = await asyncio.to_thread(ProjectRecord.from_toml, config.project_file) if config.project_file else None
        return Invitation(record, config.bootstrap, None)
    url = CoordinatorUrl.parse(config.coordinator)
    if url.project is None and config.project is not None:
        url = CoordinatorUrl.parse(f"{url.root}/p/{config.project}")
    found = await fetch_access(url, config.join_timeout_s, patient=True)
    found.correct(clock)
    access = found.access
    coordinator = Coordinator(url.root, access.coordinator_public_key, access.your_address, access.dashboard_url)
    return Invitation(access.record, (*access.bootstrap, *config.bootstrap), coordinator)


async def find_project(config: NodeConfig, invitation: Invitation, dht: DhtNode) -> ProjectRecord:
    """The record, from the invitation or the DHT. Raises BootstrapFailed or UnknownProject after the join timeout."""
    if invitation.project is not None:
        return invitation.project
    assert config.project is not None  # NodeConfig.check
    deadline = time.monotonic() + config.join_timeout_s
    while True:
        try:
            await dht.bootstrap(invitation.bootstrap, require=True)
            return (await fetch_project(dht, config.project))[0]
        except (BootstrapFailed, UnknownProject) as error:
            if time.monotonic() + RETRY_S > deadline:
                raise
            log.info("%s; trying again", error)
        await asyncio.sleep(RETRY_S)


async def choose_experts(
    config: NodeConfig, project: ProjectRecord, directory: Directory, dht: DhtNode, device: torch.device
) -> tuple[list[ExpertUid], Fit]:
    """The cells to host, those named or vacant ones, and what they take. Raises ConfigError when there are none or they
    do not fit."""
    if not config.experts:
        await directory.refresh(dht)
    # In a thread: an expert of each layer is made and tried, which may take seconds.
    seed = int.from_bytes(dht.identity.peer_id[:8], "big")
    return await asyncio.to_thread(_choose_experts, config, project, directory, seed, device)


def _choose_experts(
    config: NodeConfig, project: ProjectRecord, directory: Directory, seed: int, device: torch.device
) -> tuple[list[ExpertUid], Fit]:
    free_bytes = config.memory_limit_bytes or free_device_bytes(device)
    if config.experts:
        uids = named_cells(project, config.experts)
        named = {uid.prefix for uid in uids}
        load_extensions([layer for layer in project.layers if layer.prefix in named], config.allow_experts)
    else:
        project, kinds = _with_layers_that_run(project, config)
        taken = {layer.prefix: _taken(directory, layer.prefix) for layer in project.layers}
        most = min(config.max_experts, count_fitting(kinds, free_bytes))
        if most == 0 and kinds:
            check_fits([(layer, 1) for layer in project.layers], config.max_rows, free_bytes, str(device))
        uids = choose_vacant(project, taken, most, seed)
        if not uids:
            raise ConfigError(
                f"every cell of project {project.id} that this node can host is served already; name cells to stand by "
                "for with --experts"
            )
    counts = [(layer, sum(uid.prefix == layer.prefix for uid in uids)) for layer in project.layers]
    used = [(layer, count) for layer, count in counts if count]
    return uids, check_fits(used, config.max_rows, free_bytes, str(device))


def _with_layers_that_run(project: ProjectRecord, config: NodeConfig) -> tuple[ProjectRecord, list[ExpertMemory]]:
    """The project without the layers whose code this node lacks, may not run or cannot make an expert of, each told in
    the log; and what an expert of each that is left takes.

    Raises ConfigError, with the reason of the first, when none is left.
    """
    run: list[LayerSpec] = []
    kinds: list[ExpertMemory] = []
    reasons: list[ConfigError] = []
    for layer in project.layers:
        try:
            load_extensions([layer], config.allow_experts)
            kinds.append(measure(layer, min(config.max_rows, layer.max_rows)))
        except ConfigError as error:
            reasons.append(error)
        else:
            run.append(layer)
    if reasons and not run:
        raise reasons[0]
    for reason in reasons:
        log.warning("this node hosts nothing of %s", reason)
    return msgspec.structs.replace(project, layers=tuple(run)), kinds


def _taken(directory: Directory, prefix: str) -> frozenset[int]:
    holders = directory.layer(prefix).holders
    return frozenset(cell for cell, holder in enumerate(holders) if holder is not None)
