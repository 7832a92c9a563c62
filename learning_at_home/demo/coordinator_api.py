"""The few questions that the demo asks its coordinator, over the REST API that anyone may use."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

import httpx
import msgspec

from learning_at_home.coordinator_messages import TELEMETRY_INTERVAL_S
from learning_at_home.demo.ports import HOST
from learning_at_home.demo.recipe import PROJECT_ID

ANSWER_TIMEOUT_S = 5.0
SETTLE_S = (
    TELEMETRY_INTERVAL_S + 1.0
)  # nodes count at once and tell every 5 s: unchanged for so long is the whole count
SETTLE_DEADLINE_S = 15.0
POLL_S = 0.25


class _ProjectAnswer(msgspec.Struct, frozen=True):
    """Of the coordinator's answer, what the demo reads."""

    updates_total: int  # optimizer steps of all experts, as their hosts report them


class CoordinatorApi:
    """A client of the coordinator at a port of this machine.

    An answer that does not come is None or False, not an error: the demo goes on without its coordinator.
    """

    def __init__(self, port: int) -> None:
        self._project = f"http://{HOST}:{port}/api/v1/projects/{PROJECT_ID}"
        # trust_env: a proxy would look for 127.0.0.1 on its own machine
        self._client = httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False)

    async def __aenter__(self) -> CoordinatorApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def serves_project(self) -> bool:
        """Whether it answers for the demo's project."""
        try:
            return (await self._client.get(self._project)).is_success
        except httpx.HTTPError:
            return False

    async def expert_updates(self, settle_s: float = SETTLE_S) -> int | None:
        """Optimizer steps of all experts as their hosts count, unchanged for `settle_s`; None without an answer."""
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        count, since = await self._count_updates(), time.monotonic()
        while count is not None and time.monotonic() < min(deadline, since + settle_s):
            await asyncio.sleep(POLL_S)
            latest = await self._count_updates()
            if latest != count:
                count, since = latest, time.monotonic()
        return count

    async def _count_updates(self) -> int | None:
        try:
            answer = await self._client.get(self._project)
            answer.raise_for_status()
            return msgspec.json.decode(answer.content, type=_ProjectAnswer).updates_total
        except (httpx.HTTPError, msgspec.DecodeError):
            return None
