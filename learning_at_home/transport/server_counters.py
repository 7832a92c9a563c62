"""What a server counts of messages that bring no work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What became of messages that are not work. Written by the server's thread only."""

    malformed: int = 0
    refused: int = 0
    dropped_answers: int = 0  # their caller has left or does not read
    cut_off: int = 0  # connections that sent more than is read of them
