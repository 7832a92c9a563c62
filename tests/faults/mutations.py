"""Messages made wrong: valid ones of a corpus, changed in ways that know the format, and noise. Pure, and repeatable.

Frame number n of a seed is always the same message, whatever came before it: `Fuzzer(corpus, seed).message(n)`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

Parts = list[bytes]  # frame 0 is the header

_BYTES = bytes(range(256)) * 16  # noise is cut from it, and shuffled by the flips
# Prefixes of msgpack that announce more than can follow: arrays, maps, texts, binaries and extensions of up to 4 GiB.
_LENGTHS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
    b"\xdc\xff\xff",
    b"\xde\xff\xff",
    b"\xda\xff\xff",
    b"\xc5\xff\xff",
    b"\xc1",  # never used by msgpack
    b"\xd9\x03\xff\xfe\xfd",  # no UTF-8
)
_VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 7, 255, 1 << 31, 1 << 40, (1 << 53) + 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1),
    *(0.0, -0.0, 0.5, 1e308, math.nan, math.inf, -math.inf),
    *(None, True, False, "", "x", "forward", "backward", "request", "float16", "bfloat16", "float64", "int8", "none"),
    *("ffn0.0", "ffn0.9", "../../etc/passwd", "\x00", "x" * 3_000, b"", bytes(32), bytes(3_000)),
    *([], {}, [[]], [0] * 9, [[["float64", [3]]]], {"type": "request"}, {"": None}, [None] * 20),
    *(["float64", [1 << 39, 8]], ["float32", [-1, 6]], ["float64", [1 << 20] * 8], msgspec.msgpack.Ext(5, b"abc")),
)


class Fuzzer:
    """A stream of messages without end."""

    def __init__(self, corpus: Sequence[Parts], seed: int) -> None:
        self._corpus = corpus
        self._seed = seed
        self._random = random.Random()

    def message(self, number: int) -> Parts:
        """At least a header; any number of frames."""
        rng = self._random
        rng.seed(self._seed << 32 | number)
        parts = list(rng.choice(self._corpus))
        for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 8))):
            rng.choice(_MUTATIONS)(parts, rng, self._corpus)
        return parts or [b""]


def _which(parts: Parts, rng: random.Random) -> int:
    """The header, most often: it is where the decisions are."""
    return 0 if len(parts) < 2 or rng.random() < 0.7 else rng.randrange(1, len(parts))


def _flip(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    if parts and parts[at := _which(parts, rng)]:
        changed = bytearray(parts[at])
        for _ in range(rng.choice((1, 1, 2, 16))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        parts[at] = bytes(changed)


def _overwrite(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    if parts and parts[at := _which(parts, rng)]:
        position = rng.randrange(len(parts[at]))
        wrong = rng.choice(_LENGTHS) if rng.random() < 0.7 else _noise(rng, 8)
        end = position + (len(wrong) if rng.random() < 0.5 else 1)
        parts[at] = parts[at][:position] + wrong + parts[at][end:]


def _cut(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    if parts and parts[at := _which(parts, rng)]:
        first, second = sorted((rng.randrange(len(parts[at]) + 1), rng.randrange(len(parts[at]) + 1)))
        parts[at] = rng.choice((parts[at][:first], parts[at][first:second], parts[at][:first] + parts[at][second:]))


def _repeat(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    if parts and parts[at := _which(parts, rng)]:
        first, second = sorted((rng.randrange(len(parts[at]) + 1), rng.randrange(len(parts[at]) + 1)))
        again = parts[at][first : min(second, first + 200)] * rng.choice((1, 2, 50))
        parts[at] = parts[at][:second] + again + parts[at][second:]


def _change_frames(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    """Drop, repeat, swap, add or resize whole frames; the header may become one, and one the header."""
    if not parts:
        return
    first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
    match rng.randrange(6):
        case 0:
            del parts[first]
        case 1:
            parts.insert(second, parts[first])
        case 2:
            parts[first], parts[second] = parts[second], parts[first]
        case 3:
            parts[first + 1 :] = [*parts[first + 1 :], _noise(rng, 100)]
        case 4:
            parts += [b""] * rng.choice((1, 3, 200))
        case 5:
            del parts[1:]


def _splice(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    """This one's frames behind another's header, or half of each header."""
    other = rng.choice(corpus)
    if not parts or rng.random() < 0.5:
        parts[:1] = other[:1]
    else:
        at = rng.randrange(min(len(parts[0]), len(other[0])) + 1)
        parts[0] = parts[0][:at] + other[0][at:]


def _noise_alone(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    size = rng.choice((0, 1, 2, 10, 100, 1_000))
    if rng.random() < 0.002:
        size = 300_000  # over the limit of a header
    parts[:] = [rng.randbytes(size), *parts[1:]]


def _nest(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    """A value that is nested thousands deep, in the place of a byte."""
    if parts and parts[0]:
        at = rng.randrange(len(parts[0]))
        deep = rng.choice((b"\x91", b"\x81\xa4type", b"\x81\x91", b"\xdc\x00\x01")) * rng.choice((2, 100, 3_000))
        parts[0] = parts[0][:at] + deep + parts[0][at + 1 :]


def _change_a_value(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    """Another value of any type somewhere in the header's tree; or a key or an entry less, more, or renamed."""
    tree = _tree(parts)
    if tree is None:
        return
    places = list(_places(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("extra", "", "type", 7, "work"))] = rng.choice(_VALUES)
        case 1 | 2 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 3:
            holder[key] = rng.choice(places)[0]
            if _is_cyclic(tree):
                return
        case _:
            holder[key] = rng.choice(_VALUES)
    parts[0] = msgspec.msgpack.encode(tree)


def _multiply_work(parts: Parts, rng: random.Random, corpus: Sequence[Parts]) -> None:
    """Many pieces of work, with one id or several, with and without the frames they need."""
    tree = _tree(parts)
    if not isinstance(tree, dict) or not isinstance(tree.get("work"), list) or not tree["work"]:
        return
    times = 1_000 if rng.random() < 0.02 and len(parts[0]) < 1_000 else rng.choice((2, 3, 10))
    tree["work"] = tree["work"] * times
    if rng.random() < 0.5:
        tree["work"] = [{**w, "call_id": n} if isinstance(w, dict) else w for n, w in enumerate(tree["work"])]
    parts[0] = msgspec.msgpack.encode(tree)
    if rng.random() < 0.5 and times <= 10:
        parts[1:] = parts[1:] * times


_MUTATIONS: tuple[Callable[[Parts, random.Random, Sequence[Parts]], None], ...] = (
    *(_flip, _flip, _overwrite, _cut, _repeat, _change_frames, _splice, _noise_alone, _nest),
    *(_change_a_value, _change_a_value, _change_a_value, _change_a_value, _multiply_work),
)


def _noise(rng: random.Random, most: int) -> bytes:
    start = rng.randrange(256)
    return _BYTES[start : start + rng.randrange(most + 1)]


def _tree(parts: Parts) -> Any:
    """The header as maps and lists that may be changed; None when it is none any more."""
    try:
        return msgspec.msgpack.decode(parts[0], strict=False) if parts else None
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError):
        return None


def _places(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree; of long lists and deep trees the beginning."""
    if depth > 8 or not isinstance(tree, dict | list):
        return []
    found: list[tuple[Any, Any]] = []
    for key in list(tree)[:30] if isinstance(tree, dict) else range(min(len(tree), 30)):
        found.append((tree, key))
        found += _places(tree[key], depth + 1)
    return found


def _is_cyclic(tree: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(tree, dict | list):
        return False
    if id(tree) in above or len(above) > 12:
        return True
    below = (*above, id(tree))
    return any(_is_cyclic(value, below) for value in (tree.values() if isinstance(tree, dict) else tree))
