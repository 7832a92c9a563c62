"""What the API tells of events."""

from __future__ import annotations

import msgspec

from dashboard.view import Event


class EventsAnswer(msgspec.Struct, frozen=True):
    """Events, newest first. Ask again with `before` = the last one's id for older ones."""

    events: list[Event]
