"""In which form a layer's tensors travel: one codec for what is sent, one for what comes back. Pure."""

from __future__ import annotations

import msgspec

from learning_at_home.errors import ConfigError
from learning_at_home.wire.messages import CODECS, Codec


class Compression(msgspec.Struct, frozen=True):
    """Codecs by direction. "none" loses nothing; what the others lose stands in docs/performance.md."""

    request: Codec = "none"
    reply: Codec = "none"


def compression_of(value: Compression | str | tuple[str, str], owner: str) -> Compression:
    """`"float16"` for both directions, or a pair: for requests, for replies. Raises ConfigError with the names."""
    if isinstance(value, Compression):
        return value
    pair = (value, value) if isinstance(value, str) else tuple(value)
    if len(pair) != 2 or any(name not in CODECS for name in pair):
        raise ConfigError(
            f"{owner}: compression={value!r}; it is one of {', '.join(CODECS)}, or a pair (for requests, for replies)"
        )
    return msgspec.convert({"request": pair[0], "reply": pair[1]}, Compression)
