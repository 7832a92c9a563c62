"""An event loop whose time passes only while everybody waits: an hour of timers takes as long as what they do.

The code under it is the real one, with asyncio's own sleeps and timeouts; datagrams go through a SimulatedNetwork.
Threads and real sockets have no place here: time would run away from them.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
START_S = 1_000.0
WALL_START_S = 1_800_000_000.0


class Stalled(RuntimeError):
    """Everybody waits for something that no timer and no datagram will bring."""


class Datagrams(Protocol):
    """What stands in for UDP."""

    def open(
        self, loop: asyncio.AbstractEventLoop, address: tuple[str, int], protocol: asyncio.DatagramProtocol
    ) -> asyncio.DatagramTransport: ...

    def check(self) -> None:
        """Raises AssertionError when something went wrong on the way that is nobody's exception."""
        ...


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`network`: where UDP sockets are opened; without one there are none."""

    def __init__(self, network: Datagrams | None = None) -> None:
        self._now_s = START_S
        self._network = network
        super().__init__(_SkippingSelector(self._skip))
        self._skip(0.0)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    async def create_datagram_endpoint(  # type: ignore[override]  # the one way in which it is called here
        self, protocol_factory: Callable[[], Any], local_addr: tuple[str, int] | None = None, **unknown: Any
    ) -> tuple[asyncio.DatagramTransport, Any]:
        """As asyncio's, for sockets that are bound to an address of the simulated network."""
        if self._network is None or local_addr is None or unknown:
            raise NotImplementedError("only sockets bound to an address of a simulated network")
        protocol = protocol_factory()
        return self._network.open(self, local_addr, protocol), protocol

    def _skip(self, seconds: float) -> None:
        self._now_s += seconds
        # asyncio runs timers that are due within its clock's resolution. Two that look at the time by turns and wait
        # for a moment nearer than that would run for ever, and time would not pass: it does while nobody is ready.
        self._clock_resolution = math.ulp(self._now_s)


class _SkippingSelector(selectors.SelectSelector):
    """Lets time pass instead of waiting."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._let_pass = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            return []
        ready = super().select(0)  # the loop's own pipe: a signal
        if ready:
            return ready
        if timeout is None:
            raise Stalled("nothing is left that could happen")
        self._let_pass(timeout)
        return []


class LoopClock:
    """Implements learning_at_home.clock.Clock by a loop's time. `offset_s`: how wrong this machine's wall clock is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, offset_s: float = 0.0) -> None:
        self.monotonic_s = loop.time
        self.offset_s = offset_s

    def wall_s(self) -> float:
        return WALL_START_S + self.monotonic_s() + self.offset_s


def run_in_virtual_time(main: Coroutine[Any, Any, T], network: Datagrams | None = None) -> T:
    """As asyncio.run. Raises Stalled when nothing can happen any more, and what `Datagrams.check` raises."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(network)) as runner:
        result = runner.run(main)
    if network is not None:
        network.check()
    return result
