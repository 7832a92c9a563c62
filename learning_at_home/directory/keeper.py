"""Keep a directory fresh from the DHT: an async loop, and the policy of how often it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from learning_at_home.clock import Clock
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.directory import Directory


async def keep_fresh(
    directory: Directory,
    dht: DhtNode,
    prefixes: Iterable[str] | None,
    clock: Clock,
    on_change: Callable[[frozenset[str]], None],
) -> None:
    """Runs until cancelled. `on_change(prefixes)` is called on the loop's thread when views changed.

    Asks every 3 s while things move (at first, after a change, while a peer is suspected or a layer has nobody), and less
    and less often, down to every 10 s, when they are calm. `prefixes` None: all layers of the project.
    """
    raise NotImplementedError
