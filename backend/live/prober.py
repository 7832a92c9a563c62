"""Makes the probes that the swarms find due. Async; what is due when is probe_plan.py's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from backend.live.eyes import Eyes, Probe
from backend.live.swarm import ProbeTarget, ProjectSwarm
from learning_at_home.peer_address import PeerAddress

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
PROBES_PER_EXCHANGE = 32  # calls that one thread holds at once


async def run_prober(eyes: Eyes, swarms: Callable[[], Iterable[ProjectSwarm]], now: Callable[[], float]) -> None:
    """Runs until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        while True:
            for swarm in swarms():
                targets = swarm.due_probes(now(), random.choice)
                for first in range(0, len(targets), PROBES_PER_EXCHANGE):
                    tasks.create_task(_probe(eyes, swarm, targets[first : first + PROBES_PER_EXCHANGE], now))
            await asyncio.sleep(LOOK_EVERY_S)


async def _probe(eyes: Eyes, swarm: ProjectSwarm, targets: Sequence[ProbeTarget], now: Callable[[], float]) -> None:
    """Make these probes; however that ends, each of them is told to be over, and no other one suffers."""
    unfinished = {target.node.id: target for target in targets}

    def to_probe(target: ProbeTarget) -> Probe:
        node, (prefix, cell) = target.node, target.cell

        def finished(answered: bool, hosts_it: bool) -> None:
            if unfinished.pop(node.id, None) is not None:  # else a thread that outlived us tells what we gave up
                jitter = random.uniform(-1, 1)
                swarm.probed(node, target.cell, now(), answered=answered, hosts_it=hosts_it, jitter=jitter)

        return Probe(
            peer=PeerAddress(node.public_key, target.endpoints, node.name),
            project_id=swarm.record.id,
            layer=swarm.record.layer(prefix),
            cell=cell,
            timeout_s=target.timeout_s,
            urgent=node.schedule.alarmed,
            finished=finished,
        )

    try:
        await eyes.run_probes([to_probe(target) for target in targets])
    except Exception:
        log.exception("%d probes of project %s failed by a fault of ours", len(unfinished), swarm.record.id)
    finally:
        for target in unfinished.values():
            swarm.probe_abandoned(target.node, now())
        unfinished.clear()
