"""Sizes of memory as people write and read them. Pure."""

from __future__ import annotations

import re

from learning_at_home.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """`4GB`, `512 MiB` or plain bytes. Raises ConfigError with an example."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        raise ConfigError(f"{text[:40]!r} is not a size of memory; write one such as 4GB or 512MiB")
    return int(float(match[1]) * _UNITS[unit])


def shown(size_bytes: int) -> str:
    """For people: 3.2 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"
