"""Keep a directory fresh from the DHT: an async loop, and the policy of how often it asks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from learning_at_home.clock import Clock
from learning_at_home.directory.directory import Directory, SlotSource

TICK_S = 1.0  # how soon what expires by itself is noticed, without asking anyone


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """How long to wait before asking the DHT again. Pure.

    Unsettled (the first 30 s, 30 s after any change of a view, while a peer is suspected, while a layer has nobody):
    every 3 s, so that a new node is seen soon. Settled: each wait half as long again as the last, up to 10 s, half
    of an announcement's refresh. Vacant cells do not unsettle: a grid may be half empty for months. While a live mirror
    tells all that happens, the DHT is asked now and then, in case the coordinator keeps something to itself.
    """

    quick_s: float = 3.0
    calm_s: float = 10.0
    growth: float = 1.5
    settles_after_s: float = 30.0
    mirrored_s: float = 60.0

    def next_wait_s(self, last_wait_s: float, *, unsettled: bool, mirrored: bool = False) -> float:
        if mirrored:
            return self.mirrored_s
        return self.quick_s if unsettled else min(max(last_wait_s, self.quick_s) * self.growth, self.calm_s)


async def keep_fresh(
    directory: Directory,
    dht: SlotSource,
    prefixes: Iterable[str] | None,
    clock: Clock,
    on_change: Callable[[frozenset[str]], None],
    *,
    policy: RefreshPolicy | None = None,
    is_mirrored: Callable[[float], bool] = lambda now: False,
) -> None:
    """Runs until cancelled. `on_change(prefixes)` is called on the loop's thread when views changed, for any reason.

    `is_mirrored(now)`: whether a mirror is live; as soon as it is not the DHT is asked.
    `prefixes` None: all layers of the project. Raises UnknownLayer at once for one that it does not have.
    """
    policy = policy or RefreshPolicy()
    watched = [layer.prefix for layer in directory.project.layers] if prefixes is None else list(prefixes)
    versions = {prefix: directory.layer(prefix).version for prefix in watched}
    changed_s = clock.monotonic_s()
    wait_s = policy.quick_s

    def tell_changes() -> None:
        nonlocal changed_s
        changed = frozenset(prefix for prefix in watched if directory.layer(prefix).version != versions[prefix])
        if changed:
            changed_s = clock.monotonic_s()
            versions.update({prefix: directory.layer(prefix).version for prefix in changed})
            on_change(changed)

    while True:
        await directory.refresh(dht, watched)
        tell_changes()
        now = clock.monotonic_s()
        unsettled = (
            now < changed_s + policy.settles_after_s
            or bool(directory.suspected(now))
            or any(directory.layer(prefix).num_alive == 0 for prefix in watched)
        )
        mirrored = is_mirrored(now)
        wait_s = policy.next_wait_s(wait_s, unsettled=unsettled, mirrored=mirrored)
        remaining_s = wait_s * random.uniform(0.9, 1.1)  # readers that start together must not ask together for ever
        while remaining_s > 0:
            await asyncio.sleep(min(TICK_S, remaining_s))
            remaining_s -= TICK_S
            directory.prune()
            tell_changes()
            if mirrored and not is_mirrored(clock.monotonic_s()):
                wait_s = policy.quick_s
                break
