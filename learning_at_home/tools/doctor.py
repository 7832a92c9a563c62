"""All checks of `lah doctor`, at the same time where none needs another's answer. Async; composition only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learning_at_home.clock import Clock
from learning_at_home.coordinator_access import Access, CoordinatorUrl
from learning_at_home.tools.checks import Check, Status, warning
from learning_at_home.tools.machine_checks import check_data_folder, check_extras, check_torch, check_version
from learning_at_home.tools.network_checks import check_clock, check_coordinator, check_peers
from learning_at_home.tools.reachability import check_port, check_reachability, open_doors


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What is to be checked; checked itself already."""

    folder: Path
    coordinator: CoordinatorUrl | None = None
    bootstrap: tuple[str, ...] = ()
    host: str = "0.0.0.0"  # noqa: S104 - a node is there to be reached
    port: int = 0
    dht_port: int = 0


async def examine(patient: Patient, clock: Clock) -> list[Check]:
    """Every check, in the order in which a person should read them. Raises nothing, ends within about 10 s."""
    local = (check_version(), check_extras(), check_torch(), check_data_folder(patient.folder))
    *machine, network = await asyncio.gather(*local, examine_network(patient, clock))
    return [*machine, *network]


async def examine_network(patient: Patient, clock: Clock) -> list[Check]:
    """The checks that need others. Bootstrap peers that only the coordinator knows are asked once it has answered."""
    token = secrets.token_hex(16)
    async with open_doors(patient.host, patient.port, patient.dht_port, token) as doors, asyncio.TaskGroup() as tasks:
        named = tasks.create_task(check_peers(patient.bootstrap, clock))
        found, access = await _coordinator(patient)
        told = [address for address in (access.access.bootstrap if access else ()) if address not in patient.bootstrap]
        more = tasks.create_task(check_peers(told, clock))
        reached = await check_reachability(doors, patient.coordinator, access is not None, token)
        checks_of_peers = [*(await named)[0], *(await more)[0]]
        offsets_s = [offset_s for task in (named, more) if (offset_s := (await task)[1]) is not None]
    if not checks_of_peers and patient.coordinator is None:
        checks_of_peers = [warning("peers", "none was named", "add --bootstrap HOST:PORT, or --coordinator URL")]
    clock_check = check_clock(access.ahead_s if access else None, max(offsets_s, key=abs, default=None))
    return [*found, *checks_of_peers, clock_check, *map(check_port, doors), *reached]


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing failed."""
    return not any(check.status is Status.FAILED for check in checks)


async def _coordinator(patient: Patient) -> tuple[list[Check], Access | None]:
    if patient.coordinator is None:
        return [], None
    check, access = await check_coordinator(patient.coordinator)
    return [check], access
