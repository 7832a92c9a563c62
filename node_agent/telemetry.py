"""A node's reports to the coordinator, for as long as it can be reached. Async.

Every few seconds, or at once on a change of state. Nothing else of the node waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from learning_at_home.coordinator_access import CoordinatorUrl
from learning_at_home.coordinator_link import CoordinatorLink
from learning_at_home.coordinator_messages import Hardware, NodeTelemetry
from learning_at_home.identity import Identity

log = logging.getLogger(__name__)

LAST_WORD_TIMEOUT_S = 0.5


class TelemetryClient:
    """One node's telemetry. `snapshot` makes the message to send. To be used on the loop's thread."""

    def __init__(
        self,
        coordinator: str,
        project: str,
        coordinator_public_key: str,
        identity: Identity,
        name: str,
        hardware: Hardware,
        snapshot: Callable[[], Awaitable[NodeTelemetry]],
    ) -> None:
        url = CoordinatorUrl(coordinator, project).telemetry
        self._link = CoordinatorLink(
            url,
            project,
            "node",
            identity,
            name,
            snapshot,
            coordinator_public_key,
            hardware,
            on_problem=lambda problem: log.warning("no telemetry for now: %s; the node goes on serving", problem),
        )

    def send_soon(self) -> None:
        """Something changed that people want to see now."""
        self._link.send_soon()

    async def run(self) -> None:
        """Until cancelled, or until the connection ends while leaving. Raises nothing."""
        await self._link.run()

    def leave(self) -> None:
        """Report the new state at once; from here on a connection that ends is not made again."""
        self._link.leave()

    async def send_last_word(self) -> None:
        """Tell the present state and close, if there is a connection; a coordinator that does not listen is left."""
        if not await self._link.last_word(LAST_WORD_TIMEOUT_S):
            log.info("the coordinator did not hear that this node is leaving")
