"""What the API tells of nodes: always with who says so."""

from __future__ import annotations

import msgspec

from dashboard.view import Contributor, NodeRow


class NodesAnswer(msgspec.Struct, frozen=True):
    """All nodes of a project, slowest first, offline last."""

    at_s: float
    nodes: tuple[NodeRow, ...]
    verified: bool = False
    source: str = "reported"


class ContributorsAnswer(msgspec.Struct, frozen=True):
    """What each node gave in all, as it says itself; nothing of it is checked yet."""

    at_s: float
    contributors: list[Contributor]
    verified: bool = False
    source: str = "reported"
