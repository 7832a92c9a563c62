"""Which cells a node hosts, and which of them it yields. Pure.

Of two nodes that claim one cell the older claim serves (then the lower node id); the other keeps its expert in
memory, takes no work for it, and serves it again when the older claim has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from learning_at_home.directory.announcement import Claim, spans_of
from learning_at_home.directory.directory import RivalClaim, outranks
from learning_at_home.errors import ConfigError, LearningAtHomeError
from learning_at_home.expert_uid import ExpertUid, UidPattern
from learning_at_home.project import ProjectRecord

FindRivals = Callable[[str, Sequence[int]], Mapping[int, RivalClaim]]  # prefix, cells -> the strongest other claims


def named_cells(project: ProjectRecord, patterns: Iterable[str]) -> list[ExpertUid]:
    """The cells that patterns name, each once, in order. Raises ConfigError that names the pattern."""
    found: dict[ExpertUid, None] = {}
    for text in patterns:
        try:
            pattern = UidPattern.parse(text)
            found |= dict.fromkeys(pattern.uids(project.layer(pattern.prefix).cells))
        except LearningAtHomeError as error:
            raise ConfigError(f"--experts {text}: {error.message}") from error
    return list(found)


def choose_vacant(project: ProjectRecord, taken: Mapping[str, frozenset[int]], most: int, seed: int) -> list[ExpertUid]:
    """Up to `most` vacant cells, evenly from all layers; neighbours, from a place that differs from node to node.

    Two nodes that come at the same moment rarely choose the same ones; when they do, the younger claim yields.
    """
    vacant: list[list[ExpertUid]] = []
    for layer in project.layers:
        grid = layer.cells
        free = [cell for cell in range(grid.num_cells) if cell not in taken.get(layer.prefix, frozenset())]
        start = seed % len(free) if free else 0
        nearest = [*free[start : start + most], *free[:start]][:most]
        vacant.append([grid.uid(layer.prefix, cell) for cell in nearest])
    chosen: list[ExpertUid] = []
    for turn in range(max(map(len, vacant), default=0)):
        chosen += [cells[turn] for cells in vacant if turn < len(cells)]
    return chosen[:most]


def find_yields(
    project: ProjectRecord, uids: Iterable[ExpertUid], claimed_ms: int, public_key: bytes, rivals: FindRivals
) -> dict[str, str]:
    """Which of our experts an older claim outranks, and why, in words: uid -> reason."""
    ours: dict[str, list[int]] = {}
    for uid in uids:
        ours.setdefault(uid.prefix, []).append(project.layer(uid.prefix).cells.cell(uid))
    yielded = {}
    for prefix, cells in ours.items():
        grid = project.layer(prefix).cells
        for cell, rival in rivals(prefix, cells).items():
            if not outranks(claimed_ms, public_key, rival):
                older_s = (claimed_ms - rival.claimed_ms) / 1000
                why = f"claimed it {older_s:.0f} s earlier" if older_s >= 1 else "has the older claim"
                yielded[str(grid.uid(prefix, cell))] = f"{rival.name} {why}"
    return yielded


def claims_of(project: ProjectRecord, uids: Iterable[ExpertUid], claimed_ms: int) -> tuple[Claim, ...]:
    """What an announcement says of these experts: one claim per layer."""
    cells: dict[str, list[int]] = {}
    for uid in uids:
        cells.setdefault(uid.prefix, []).append(project.layer(uid.prefix).cells.cell(uid))
    return tuple(Claim(prefix, spans_of(numbers), claimed_ms) for prefix, numbers in sorted(cells.items()))
