"""Makes the probes that the swarms find due. Async; what is due when is probe_plan.py's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from backend.live.eyes import Eyes, Probe
from backend.live.swarm import ProbeTarget, ProjectSwarm
from learning_at_home.peer_address import PeerAddress

LOOK_EVERY_S = 0.1
PROBES_PER_EXCHANGE = 32  # calls that one thread holds at once


async def run_prober(eyes: Eyes, swarms: Callable[[], Iterable[ProjectSwarm]], now: Callable[[], float]) -> None:
    """Runs until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        while True:
            for swarm in swarms():
                probes = [_probe(swarm, target, now) for target in swarm.due_probes(now(), random.choice)]
                for first in range(0, len(probes), PROBES_PER_EXCHANGE):
                    tasks.create_task(eyes.run_probes(probes[first : first + PROBES_PER_EXCHANGE]))
            await asyncio.sleep(LOOK_EVERY_S)


def _probe(swarm: ProjectSwarm, target: ProbeTarget, now: Callable[[], float]) -> Probe:
    node, (prefix, cell) = target.node, target.cell
    assert node.announcement is not None  # due_probes skips nodes without

    def finished(answered: bool, hosts_it: bool) -> None:
        jitter = random.uniform(-1, 1)
        swarm.probed(node, target.cell, now(), answered=answered, hosts_it=hosts_it, jitter=jitter)

    return Probe(
        peer=PeerAddress(node.public_key, node.announcement.endpoints, node.name),
        project_id=swarm.record.id,
        layer=swarm.record.layer(prefix),
        cell=cell,
        timeout_s=target.timeout_s,
        urgent=node.schedule.alarmed,
        finished=finished,
    )
