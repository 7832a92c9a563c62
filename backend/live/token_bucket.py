"""How much of something a peer may do per second, with room for bursts. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """`per_second` tokens flow in, at most `burst` are held; it starts full."""

    per_second: float
    burst: float
    tokens: float = -1.0
    at_s: float | None = None

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Whether there was enough; if not, nothing was taken."""
        if not self.has(now, amount):
            return False
        self.tokens -= amount
        return True

    def has(self, now: float, amount: float = 1.0) -> bool:
        """Whether there is enough; nothing is taken."""
        self._refill(now)
        return self.tokens >= amount

    def owe(self, now: float, amount: float = 1.0) -> float:
        """Take in any case; the answer is how many seconds to wait until the debt is paid."""
        self._refill(now)
        self.tokens -= amount
        return max(0.0, -self.tokens / self.per_second)

    def _refill(self, now: float) -> None:
        if self.at_s is None:
            self.tokens = self.burst
        else:
            self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at_s) * self.per_second)
        self.at_s = now
