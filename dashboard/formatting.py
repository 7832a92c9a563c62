"""Numbers as people read them: 12,480 rows/s, 3.42 TFLOP/s, 41 ms, 3 min; a dash for what is not known.

Pure. `static/js/format.js` says the same in the browser, and a test holds the two equal: a number that a live page
patches must look as it did when the server drew it. Numbers round half away from zero on the exact binary value, as
JavaScript's `toFixed` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

NOTHING = "–"
SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
BINARY_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi")
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400


def fixed(value: float, decimals: int) -> str:
    """`toFixed` with thousands separated by commas."""
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{rounded + 0:,.{decimals}f}"


def count(value: float | None) -> str:
    """12,480"""
    return NOTHING if value is None or not math.isfinite(value) else fixed(value, 0)


def rate(value: float | None) -> str:
    """12,480 · 96.4 · 0.25: three digits, and never fewer than are before the point."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "0" if value == 0 else fixed(value, _decimals(value))


def milliseconds(value: float | None) -> str:
    """118 · 4.2 · 0.45"""
    if value is None or not math.isfinite(value):
        return NOTHING
    return fixed(value, 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2)


def percent(value: float | None) -> str:
    """97 · 4.2 · 0.31: whole from ten on."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "0" if value == 0 else milliseconds(value)


def whole(value: float | None) -> str:
    """A gauge without decimals: 71."""
    return count(value)


def scaled(value: float | None, unit: str) -> tuple[str, str]:
    """(3.42, TFLOP/s): three digits and the unit with its SI prefix."""
    return _with_prefix(value, unit, 1_000.0, SI_PREFIXES)


def flop(value: float | None) -> str:
    """3.42 TFLOP"""
    return " ".join(scaled(value, "FLOP"))


def watts(value: float | None) -> str:
    """215 W"""
    return NOTHING if value is None else f"{count(value)} W"


def celsius(value: float | None) -> str:
    """64 °C"""
    return NOTHING if value is None else f"{count(value)} °C"


def size(value: float | None) -> str:
    """11.2 GiB"""
    number, unit = _with_prefix(value, "B", 1_024.0, BINARY_PREFIXES)
    return number if number == NOTHING else f"{number} {unit}"


def loss(value: float | None) -> str:
    """0.0421: four significant digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    magnitude = abs(value)
    decimals = 0 if magnitude >= 1_000 else 2 if magnitude >= 10 else 3 if magnitude >= 1 else 4
    return fixed(value, decimals)


def duration(seconds: float | None) -> str:
    """Whole seconds below a minute, then the largest unit that fits: 12 s · 3 min · 5 h · 2 d."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    seconds = max(0, math.floor(seconds))
    if seconds < MINUTE_S:
        return f"{seconds} s"
    if seconds < HOUR_S:
        return f"{seconds // MINUTE_S} min"
    if seconds < 2 * DAY_S:
        return f"{seconds // HOUR_S} h"
    return f"{seconds // DAY_S} d"


def clock(at_s: float | None) -> str:
    """12:04:31 UTC; the browser shows its own time zone instead."""
    return NOTHING if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S UTC")


def iso(at_s: float) -> str:
    """For the `datetime` attribute of <time>."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def shape(grid: tuple[int, ...]) -> str:
    """16 × 32"""
    return " × ".join(map(count, grid))


def plural(number: int, singular: str, many: str | None = None) -> str:
    """1 node, 2 nodes"""
    return f"{count(number)} {singular if number == 1 else many or singular + 's'}"


FILTERS: dict[str, Callable[..., str]] = {
    "celsius": celsius,
    "clock": clock,
    "count": count,
    "duration": duration,
    "flop": flop,
    "iso": iso,
    "loss": loss,
    "milliseconds": milliseconds,
    "percent": percent,
    "plural": plural,
    "rate": rate,
    "shape": shape,
    "size": size,
    "watts": watts,
    "whole": whole,
}


def _decimals(value: float) -> int:
    """Decimals that leave three digits: the limits lie where rounding would add a digit."""
    magnitude = abs(value)
    return 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2


def _with_prefix(value: float | None, unit: str, base: float, prefixes: tuple[str, ...]) -> tuple[str, str]:
    if value is None or not math.isfinite(value):
        return NOTHING, unit
    if value == 0:
        return "0", unit
    power = 0
    while power < len(prefixes) - 1 and abs(value) >= base - 0.5:
        value /= base
        power += 1
    return fixed(value, 0 if power == 0 and value == math.floor(value) else _decimals(value)), prefixes[power] + unit
