"""How much libzmq holds for each connection that the node has not read, and whose connection must end for it.

Pure: sees counts and times. A connection's stream is in order, so what libzmq holds of it is what arrived less what the
node has taken out and less what carries no message: heartbeats, and the framing of what was taken.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024
FRAME_BYTES = 42  # around each frame: 9 of ZMTP's header (2 below 256 bytes), 33 of CURVE's command (none without it)
HEARTBEAT_BYTES_PER_S = 32  # twice a PING and a PONG of 42 bytes every 5 s; what is more than that counts as held
UNNOTICED_BYTES = 4 * 1024  # under this a connection holds nothing worth counting: a handshake takes about 750 bytes
IDLE_LOOK_S = 30.0

Reason = Literal["connection", "total", "idle"]


@dataclass(frozen=True, slots=True)
class InflowLimits:
    """What libzmq may hold for callers, in bytes as they arrive: small frames take up to three times that in memory."""

    connection_bytes: int = 160 * MIB  # the largest request has 128 MiB, and a part of the next may follow
    total_bytes: int = 512 * MIB
    overdue_s: float = 60.0  # a message that takes longer goes first when there is too much; few calls wait so long
    idle_s: float = 3_900.0  # a call lives for an hour at most: then nothing can be under way on this connection


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that must end."""

    connection: int
    neighbourhood: str
    held_bytes: int
    reason: Reason


@dataclass(slots=True)
class _Account:
    neighbourhood: str
    updated_at: float
    last_message_at: float  # or when it was opened
    gone: float = 0.0  # of the bytes that arrived, what libzmq does not hold any more
    held: int = 0
    holding_since: float = 0.0


class InflowAccounts:
    """The accounts of all connections, by any number that is unique among the open ones."""

    def __init__(self, limits: InflowLimits) -> None:
        self._limits = limits
        self._accounts: dict[int, _Account] = {}
        self._holding: dict[int, _Account] = {}  # those that hold something worth counting
        self._next_idle_look = 0.0

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def held_bytes(self) -> int:
        """What all connections hold together, as of their last updates."""
        return sum(account.held for account in self._holding.values())

    def opened(self, connection: int, neighbourhood: str, now: float) -> None:
        """A connection begins; `neighbourhood` names the network that it comes from."""
        self.closed(connection)
        self._accounts[connection] = _Account(neighbourhood, now, now)

    def closed(self, connection: int) -> None:
        """It has ended: libzmq has freed what was unfinished."""
        self._accounts.pop(connection, None)
        self._holding.pop(connection, None)

    def update(self, connection: int, arrived: int, taken: int, now: float) -> None:
        """Bytes that `arrived` since it was opened, and that the node has `taken` out since the last update.

        The credits err on the generous side; none is kept beyond what arrived, so an honest connection stays near zero
        and nobody saves up for later.
        """
        account = self._accounts[connection]
        heartbeats = HEARTBEAT_BYTES_PER_S * (now - account.updated_at)
        account.gone = min(arrived, account.gone + taken + heartbeats)
        account.updated_at = now
        account.held = int(arrived - account.gone)
        if taken:
            account.last_message_at = now
        if account.held <= UNNOTICED_BYTES:
            self._holding.pop(connection, None)
        elif connection not in self._holding:
            self._holding[connection] = account
            account.holding_since = now

    def holding(self) -> list[int]:
        """The connections that hold something worth counting."""
        return list(self._holding)

    def exceed_bounds(self) -> bool:
        """Whether someone must be cut off for what is held."""
        limits = self._limits
        return self.held_bytes > limits.total_bytes or any(
            account.held > limits.connection_bytes for account in self._holding.values()
        )

    def cut(self, now: float) -> list[Cut]:
        """Close the accounts of those that must end: by their own bound, by the bound of all, or idle too long.

        When all hold too much, overdue messages go first; then the largest of the neighbourhood that holds most, so
        that one sender's hundred small connections do not push out another's large request.
        """
        limits = self._limits
        cuts = [
            self._end(connection, "connection")
            for connection, account in list(self._holding.items())
            if account.held > limits.connection_bytes
        ]
        excess = self.held_bytes - limits.total_bytes
        if excess > 0:
            cuts += self._relieve(excess, now)
        if now >= self._next_idle_look:
            self._next_idle_look = now + IDLE_LOOK_S
            for connection, account in list(self._accounts.items()):
                if now - account.last_message_at > limits.idle_s:
                    cuts.append(self._end(connection, "idle"))
        return cuts

    def _relieve(self, excess: int, now: float) -> list[Cut]:
        by_neighbourhood: defaultdict[str, int] = defaultdict(int)
        for account in self._holding.values():
            by_neighbourhood[account.neighbourhood] += account.held

        def weight(connection: int) -> tuple[bool, int, int]:
            account = self._holding[connection]
            waiting_since = max(account.holding_since, account.last_message_at)
            overdue = now - waiting_since > self._limits.overdue_s
            return overdue, by_neighbourhood[account.neighbourhood], account.held

        cuts = []
        while excess > 0:
            cut = self._end(max(self._holding, key=weight), "total")
            by_neighbourhood[cut.neighbourhood] -= cut.held_bytes
            excess -= cut.held_bytes
            cuts.append(cut)
        return cuts

    def _end(self, connection: int, reason: Reason) -> Cut:
        account = self._accounts[connection]
        self.closed(connection)
        return Cut(connection, account.neighbourhood, account.held, reason)
