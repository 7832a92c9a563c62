"""Browsers that watch one project: a snapshot each, then numbered deltas. Pure, but for the event that wakes a reader.

Policy: at most one delta waits per reader; what comes while it waits is merged into it (nothing is lost but points of a
chart). A reader whose delta has waited for HOPELESS_S is let go: its page says so and connects again for a snapshot.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from backend.live.delta import difference, merge
from dashboard.view import Change, ProjectView
from learning_at_home.errors import NodeOverloaded

MAX_READERS = 2_000  # per project; each costs a socket and now and then a few kilobytes
HOPELESS_S = 10.0


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    sequence: int
    view: ProjectView


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    sequence: int
    at_s: float
    change: msgspec.Raw


class PublishedChange:
    """A change as published; it is encoded once for all readers who get it unmerged."""

    def __init__(self, change: Change, at_s: float) -> None:
        self.change = change
        self.at_s = at_s
        self._encoded: msgspec.Raw | None = None

    @property
    def encoded(self) -> msgspec.Raw:
        if self._encoded is None:
            self._encoded = msgspec.Raw(msgspec.json.encode(self.change))
        return self._encoded

    def followed_by(self, other: PublishedChange) -> PublishedChange:
        return PublishedChange(merge(self.change, other.change), other.at_s)


class Reader:
    """One browser's place in the stream."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.sequence = snapshot.sequence
        self.num_merged = 0
        self.cut: Literal["", "slow", "closing"] = ""
        self._pending: PublishedChange | None = None
        self._pending_since_s = 0.0
        self._wake = asyncio.Event()

    def offer(self, published: PublishedChange, now: float) -> None:
        """Queue a change, or merge it into the one that waits; cut the reader that makes it wait too long."""
        if self._pending is None:
            self._pending, self._pending_since_s = published, now
        elif now - self._pending_since_s > HOPELESS_S:
            self.cut = "slow"
        else:
            self._pending = self._pending.followed_by(published)
            self.num_merged += 1
        self._wake.set()

    def close(self) -> None:
        self.cut = self.cut or "closing"
        self._wake.set()

    def take(self) -> Delta | None:
        """The next delta, numbered; None when nothing waits."""
        published, self._pending = self._pending, None
        self._wake.clear()
        if published is None:
            return None
        self.sequence += 1
        return Delta(self.sequence, published.at_s, published.encoded)

    async def wait(self) -> None:
        """Return when a delta waits or the reader was cut."""
        await self._wake.wait()


class Hub:
    """All readers of one project and the view that they have."""

    def __init__(self) -> None:
        self.readers: set[Reader] = set()
        self.view: ProjectView | None = None
        self.published_s = 0.0
        self._sequence = 0
        self._closed = False

    def join(self, view: ProjectView, now: float) -> Reader:
        """A new reader, with `view` as its snapshot. Those who are there get what is new in it, too.

        Raises NodeOverloaded when there are too many.
        """
        if len(self.readers) >= MAX_READERS or self._closed:
            raise NodeOverloaded(f"{MAX_READERS:,} browsers watch this project already; the page still works by reload")
        self.publish(view, now)
        reader = Reader(Snapshot(self._sequence, view))
        self.readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        self.readers.discard(reader)

    def publish(self, view: ProjectView, now: float) -> None:
        """Give every reader what differs from the last view."""
        before, self.view, self.published_s = self.view, view, now
        self._sequence += 1
        if before is None or not self.readers:
            return
        published = PublishedChange(difference(before, view), view.at_s)
        for reader in self.readers:
            reader.offer(published, now)

    def close(self) -> None:
        """Let all readers go."""
        self._closed = True
        for reader in self.readers:
            reader.close()
