"""How a trainer comes into a shared group: by taking what the swarm holds, or as the first, by filling it.

`next_move` decides by what the chunks' hosts say; pure. `start` does it. Policy:
docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import NoReturn

from torch import Tensor

from learning_at_home.client.rounds import MAX_CAUSES_SHOWN
from learning_at_home.client.shared_round import SharedRound
from learning_at_home.errors import LearningAtHomeError, NotEnoughExperts, ParametersMissing

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.1
PATIENCE_S = 5.0  # with a first trainer that fills no further chunk: then it is taken for dead
LOOK_TIMEOUT_S, MIN_LOOK_S = 5.0, 1.0  # the last look, too, gets a fair chance


class Move(Enum):
    """What a trainer without the group's state does next."""

    TAKE = auto()  # everything is there
    CLAIM = auto()  # nothing is: fill chunk 0, and see whether we were the first
    FILL = auto()  # the empty ones, with our own start
    WAIT = auto()  # for hosts, for the first trainer, or for one that has a copy


def next_move(
    versions: Sequence[int | None], *, is_first: bool, unchanged_s: float, fill_missing: bool = False
) -> Move:
    """`versions`: 0 empty, None unknown since no host answers. `is_first`: chunk 0 is ours; `unchanged_s`: how long all
    versions have been as they are."""
    known = [version for version in versions if version is not None]
    if len(known) < len(versions):
        return Move.WAIT
    if all(known):
        return Move.TAKE
    if not any(known):
        return Move.CLAIM
    if is_first or fill_missing:
        return Move.FILL
    untrained = max(known) <= 1  # nobody has changed anything: our start is as good as any
    return Move.FILL if untrained and unchanged_s >= PATIENCE_S else Move.WAIT


def start(round_of: SharedRound, model_CL: Tensor, timeout_s: float, fill_missing: bool, prefix: str) -> None:
    """Let every copy hold what the swarm does. `model_CL`: our own start, for a swarm that has nothing.

    Raises SpecMismatch, NotEnoughExperts when hosts are missing or do not take our start, ParametersMissing when hosts
    of a trained group are empty and no trainer with a copy fills them in time.
    """
    deadline = time.monotonic() + timeout_s
    refusals: Mapping[int, LearningAtHomeError] = {}
    versions: list[int | None] = []
    is_first, changed_s = False, time.monotonic()
    while True:
        now = time.monotonic()
        found = round_of.read(now + min(LOOK_TIMEOUT_S, max(MIN_LOOK_S, deadline - now)))
        seen = [found[copy.cell][0].version if copy.cell in found else None for copy in round_of.copies]
        if seen != versions:
            versions, changed_s = seen, time.monotonic()
        move = next_move(
            versions, is_first=is_first, unchanged_s=time.monotonic() - changed_s, fill_missing=fill_missing
        )
        if move is Move.TAKE:
            for copy in round_of.copies:
                note, values_L = found[copy.cell]
                if note.origin != copy.origin:
                    copy.adopt(values_L, note.version, note.origin)
                else:
                    copy.take(values_L, note.version)
            return
        if time.monotonic() >= deadline:
            _give_up(round_of, versions, refusals, timeout_s, prefix)
        if move is Move.CLAIM:
            round_of.fill(round_of.copies[:1], model_CL, deadline)
            is_first = round_of.counts.fills > 0
        elif move is Move.FILL:
            empty = [copy for copy, version in zip(round_of.copies, versions, strict=True) if not version]
            log.info("layer %s: filling %d of %d chunks with this trainer's start", prefix, len(empty), len(versions))
            round_of.fill(empty, model_CL, deadline)
        refusals = {} if move is Move.WAIT else dict(round_of.counts.causes)
        if move is Move.WAIT or refusals:
            time.sleep(LOOK_AGAIN_S)


def _give_up(
    round_of: SharedRound,
    versions: Sequence[int | None],
    refusals: Mapping[int, LearningAtHomeError],
    timeout_s: float,
    prefix: str,
) -> NoReturn:
    causes = {f"{prefix}.{cell}": error for cell, error in {**refusals, **round_of.counts.causes}.items()}
    if None not in versions and (refusals or not any(versions)):
        told = (
            "; ".join(f"{uid}: {error}" for uid, error in list(causes.items())[:MAX_CAUSES_SHOWN]) or "no time was left"
        )
        raise NotEnoughExperts(
            f"layer {prefix}: in {timeout_s:g} s hosts that have nothing did not take this trainer's start ({told})",
            causes=causes,
        )
    if None in versions:
        missing = ", ".join(f"{prefix}.{cell}" for cell, version in enumerate(versions) if version is None)
        raise NotEnoughExperts(f"layer {prefix}: after {timeout_s:g} s no host answers for {missing}", causes=causes)
    empty = ", ".join(f"{prefix}.{cell}" for cell, version in enumerate(versions) if version == 0)
    raise ParametersMissing(
        f"layer {prefix}: the hosts of {empty} have nothing, others hold a trained state, and no trainer with a copy "
        f"has filled them in {timeout_s:g} s. When none is left, fill_missing=True fills them with this trainer's start"
    )
