"""Peers that are left alone, and for how long: those that our own calls could not reach, those that our calls put aside
since they are slow or fail often, and those that a coordinator could not reach. Pure: `now` is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_TERM_S = 1.0  # a restarting host or a full queue is back within a second
MAX_TERM_S = 30.0  # half an announcement's life: a host that stays gone is tried once or twice more, then expires
FORGET_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A peer that this process leaves alone."""

    public_key: bytes
    failures: int  # in a row, to reach it; 0: it was put aside
    until_s: float  # monotonic; out of the views until then


class Suspicions:
    """At most one per peer. The term doubles with each failure after the last term has passed."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, Suspicion] = {}  # also those whose term has passed; to be read only
        self._aside: dict[bytes, float] = {}  # until when, monotonic; no answer lifts it

    def fail(self, public_key: bytes, now: float) -> bool:
        """Whether this failure began a term. One during a term does not: it is of a call that was under way already."""
        known = self.by_key.get(public_key)
        if known is not None and now < known.until_s:
            return False
        failures = known.failures + 1 if known else 1
        term_s = min(FIRST_TERM_S * 2.0 ** min(failures - 1, 10), MAX_TERM_S)
        self.by_key[public_key] = Suspicion(public_key, failures, now + term_s)
        return True

    def clear(self, public_key: bytes) -> bool:
        """Whether there was something to clear."""
        return self.by_key.pop(public_key, None) is not None

    def put_aside(self, public_key: bytes, until_s: float) -> None:
        """Leave a peer alone that answers, but badly, until then, whatever it answers meanwhile."""
        self._aside[public_key] = until_s

    def until_s(self, public_key: bytes) -> float:
        """End of the peer's term; minus infinity without one."""
        known = self.by_key.get(public_key)
        return known.until_s if known else float("-inf")

    def active(self, now: float) -> tuple[Suspicion, ...]:
        silent = [suspicion for suspicion in self.by_key.values() if now < suspicion.until_s]
        silent_until_s = {suspicion.public_key: suspicion.until_s for suspicion in silent}
        aside = [
            Suspicion(key, 0, until_s)
            for key, until_s in self._aside.items()
            if max(now, silent_until_s.get(key, now)) < until_s
        ]
        longer = {suspicion.public_key for suspicion in aside}
        return (*(suspicion for suspicion in silent if suspicion.public_key not in longer), *aside)

    def prune(self, now: float) -> None:
        """Forget failures so old that the next one is a new story."""
        self.by_key = {key: known for key, known in self.by_key.items() if now < known.until_s + FORGET_AFTER_S}
        self._aside = {key: until_s for key, until_s in self._aside.items() if now < until_s}


@dataclass(frozen=True, slots=True)
class ToldSuspicion:
    """A peer that a coordinator's probes could not reach. Whatever it announces later is a sign of life."""

    since_ms: int  # UTC
    until_ms: int  # UTC
