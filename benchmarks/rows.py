"""A benchmark's rows: the ratio of ours to a reference, its bar, and whether it holds. Pure.

A ratio is always "larger is better for us": reference/ours for times and bytes, ours/reference for rates.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RATES = ("1/s", "rows/s", "share")  # units of which more is better


@dataclass(frozen=True, slots=True)
class Bar:
    """What a row must reach."""

    row: str
    reference: str
    bar: float
    unit: str  # "s", "bytes", "round trips", or one of RATES

    @property
    def is_rate(self) -> bool:
        return self.unit in RATES


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark, as it stands in the JSON file. What is None was not measured; `why` then says why."""

    row: str
    ours: float | None
    unit: str
    reference: str
    reference_value: float | None
    ratio: float | None
    bar: float
    holds: bool | None
    runs: int
    spread: tuple[float, float] | None
    why: str | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Row:
        spread = fields["spread"]
        return cls(**{**fields, "spread": (spread[0], spread[1]) if spread else None})

    def to_json(self) -> dict[str, object]:
        fields: dict[str, object] = {
            "row": self.row,
            "ours": self.ours,
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": self.ratio,
            "bar": self.bar,
            "holds": self.holds,
            "runs": self.runs,
            "spread": list(self.spread) if self.spread else None,
        }
        return fields if self.why is None else {**fields, "why": self.why}


def ratio_of(bar: Bar, ours: float, reference: float) -> float:
    """Larger is better for us."""
    return ours / reference if bar.is_rate else reference / ours


def compared(bar: Bar, pairs: Sequence[tuple[float, float]], why: str | None = None) -> Row:
    """The row of pairs (ours, reference) that were measured one after the other."""
    ratios = [ratio_of(bar, ours, reference) for ours, reference in pairs]
    ratio = statistics.median(ratios)
    return Row(
        row=bar.row,
        ours=rounded(statistics.median(ours for ours, _ in pairs)),
        unit=bar.unit,
        reference=bar.reference,
        reference_value=rounded(statistics.median(reference for _, reference in pairs)),
        ratio=rounded(ratio),
        bar=bar.bar,
        holds=ratio >= bar.bar,
        runs=len(pairs),
        spread=(rounded(min(ratios)), rounded(max(ratios))),
        why=why,
    )


def alone(bar: Bar, values: Sequence[float], why: str) -> Row:
    """The row of ours where there is no reference to compare with, or nothing at all."""
    ours = rounded(statistics.median(values)) if values else None
    return Row(bar.row, ours, bar.unit, bar.reference, None, None, bar.bar, None, len(values), None, why)


def broken(bar: Bar, why: str) -> Row:
    """The row of ours that did not work: it does not hold."""
    return Row(bar.row, None, bar.unit, bar.reference, None, None, bar.bar, False, 0, None, why)


def rounded(value: float) -> float:
    """Four significant digits: more than a measurement has."""
    return float(f"{value:.4g}")
