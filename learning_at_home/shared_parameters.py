"""What trainers and hosts of shared parameters must agree on: the note that stands where an expert's inputs do.

A note is one row of ROW_SIZE whole numbers from 0 to 127: a mark of 127, what is meant, then version and fingerprint as
digits of 7 bits, most significant first. So it survives every codec exactly (the mark makes int8's scale 1). A row of
zeros is no note: probes send it to read. Pure. Policy: docs/decisions/0009-shared-parameters.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from learning_at_home.errors import SpecMismatch

ARCHITECTURE = "parameters"  # of layers whose cells hold chunks
ROW_SIZE = 16
MAX_VERSION = (1 << 28) - 1
FINGERPRINT_BITS = 56
_MARK, _DIGIT_BITS, _VERSION_DIGITS, _FINGERPRINT_DIGITS = 127, 7, 4, 8
_PADDING = (0,) * (ROW_SIZE - 2 - _VERSION_DIGITS - _FINGERPRINT_DIGITS)


class Meaning(IntEnum):
    """What a caller wants of a chunk."""

    READ = 1
    CHANGE = 2  # step by the pseudo-gradient that comes with the note
    FILL = 3  # take what comes with the note as the content, if the chunk's version is lower than the note's


@dataclass(frozen=True, slots=True)
class Note:
    """`version`: of the caller's copy; in a host's answer, the first that contains what came."""

    meaning: Meaning
    version: int
    fingerprint: int

    def to_row(self) -> list[int]:
        version = _to_digits(min(self.version, MAX_VERSION), _VERSION_DIGITS)
        return [_MARK, self.meaning, *version, *_to_digits(self.fingerprint, _FINGERPRINT_DIGITS), *_PADDING]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Note | None:
        """None for a row of zeros. Raises SpecMismatch for what is neither."""
        if len(row) == ROW_SIZE and not any(row):
            return None
        whole = [int(number) for number in row if 0 <= number <= _MARK and number == int(number)]
        if len(whole) != ROW_SIZE or len(row) != ROW_SIZE or whole[0] != _MARK or whole[1] not in set(Meaning):
            raise SpecMismatch("this row is no note of shared parameters; they are reached by swarm.shared(...)")
        digits = whole[2:]
        version, fingerprint = digits[:_VERSION_DIGITS], digits[_VERSION_DIGITS:][:_FINGERPRINT_DIGITS]
        return cls(Meaning(whole[1]), _from_digits(version), _from_digits(fingerprint))


def _to_digits(number: int, count: int) -> list[int]:
    return [number >> _DIGIT_BITS * place & _MARK for place in reversed(range(count))]


def _from_digits(digits: Sequence[int]) -> int:
    number = 0
    for digit in digits:
        number = number << _DIGIT_BITS | digit
    return number
