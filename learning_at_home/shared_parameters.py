"""What trainers and hosts of shared parameters must agree on: the note that stands where an expert's inputs do.

A note is one row of NOTE_SIZE whole numbers from 0 to 127: a mark of 127, what is meant, then version, origin and
fingerprint as digits of 7 bits, most significant first. So it survives every codec exactly (the mark makes int8's scale
1). A row of zeros is no note: probes send it to read. An answer begins with a note as well, in a block of its own.
Pure. Policy: docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

from learning_at_home.errors import SpecMismatch

ARCHITECTURE = "parameters"  # of layers whose cells hold chunks
NOTE_SIZE = 16
HEADER_SIZE = 128  # numbers before those of a chunk: a note, then zeros, as many as int8 gives one scale
MAX_VERSION = MAX_ORIGIN = (1 << 28) - 1
MAX_FILL = MAX_VERSION // 2  # the highest version that a fill may claim: it leaves as many updates as anybody makes
FINGERPRINT_BITS = 42
_MARK, _DIGIT_BITS, _DIGITS = 127, 7, (4, 4, 6)  # of version, origin and fingerprint


class Meaning(IntEnum):
    """What a caller wants of a chunk."""

    READ = 1
    CHANGE = 2  # step by the pseudo-gradient that comes with the note
    FILL = 3  # take what comes with the note as the content, if the chunk's version is lower than the note's
    HELD = 4  # a host's answer: what it has


@dataclass(frozen=True, slots=True)
class Note:
    """`version`: of the caller's copy or the host's content; in the answer to a write, the first that contains it."""

    meaning: Meaning
    version: int
    origin: int  # of the fill that the content comes from, a random number; 0 where there is none yet
    fingerprint: int  # of the parameters' names and shapes

    def to_row(self) -> list[int]:
        numbers = min(self.version, MAX_VERSION), self.origin, self.fingerprint
        parts = [_to_digits(number, count) for number, count in zip(numbers, _DIGITS, strict=True)]
        return [_MARK, self.meaning, *(digit for part in parts for digit in part)]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Note | None:
        """None for a row of zeros. Raises SpecMismatch for what is neither."""
        if len(row) == NOTE_SIZE and not any(row):
            return None
        whole = [int(number) for number in row if 0 <= number <= _MARK and number == int(number)]
        if len(whole) != NOTE_SIZE or len(row) != NOTE_SIZE or whole[0] != _MARK or whole[1] not in set(Meaning):
            raise SpecMismatch("this row is no note of shared parameters; they are reached by swarm.shared(...)")
        digits = iter(whole[2:])
        numbers = [_from_digits(tuple(islice(digits, count))) for count in _DIGITS]
        return cls(Meaning(whole[1]), *numbers)


def _to_digits(number: int, count: int) -> list[int]:
    return [number >> _DIGIT_BITS * place & _MARK for place in reversed(range(count))]


def _from_digits(digits: Sequence[int]) -> int:
    number = 0
    for digit in digits:
        number = number << _DIGIT_BITS | digit
    return number
