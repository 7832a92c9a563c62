"""What an expert of several tensors takes and returns: a nested structure, written in the project record as one text.

    (float[16, 64], mask=bool[16], state=(float[64], float[64])) -> (float[16, 64], {hidden: float[64]})

Before the arrow stands a call: positional inputs, then named ones. A value is a tensor, `(a, b)` or `{name: a}`, to any
depth; a tensor is the dtype and shape of one of its rows. `float` is the layer's own dtype. Pure, and without torch:
values are flattened to the tensors in the order of the text, in which they also travel, whatever they are.
Policy: docs/decisions/0012-several-tensors.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from learning_at_home.errors import ConfigError, SpecMismatch

DtypeName = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
FLOAT = "float"
WHOLE_BYTES: Mapping[DtypeName, int] = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_FLOAT_BYTES: Mapping[DtypeName, int] = {"float64": 8, "float32": 4}  # of layers
MAX_CHARS = 2_000
MAX_TENSORS = 16  # in and out: a backward carries all of them in one piece of work
MAX_DEPTH = 8
MAX_SIZES = 7  # with that of the rows 8, as the wire has it
MAX_SIZE = 1 << 30
_TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w{0,63})|(\d{1,10})|(->|[()\[\]{},:=]))\s*", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor. `path` names it: `0` the first positional input, `mask`, `state.1`, `state.cell`."""

    path: str
    dtype: DtypeName
    shape: tuple[int, ...]  # of one row

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOAT_BYTES

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * (_FLOAT_BYTES.get(self.dtype) or WHOLE_BYTES[self.dtype])

    def __str__(self) -> str:
        """As it is told to people: float32[*, 64]."""
        return f"{self.dtype}[{', '.join(['*', *map(str, self.shape)])}]"


Nested = Leaf | tuple["Nested", ...] | dict[str, "Nested"]


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """A parsed text. Lists are taken for tuples; what `unflatten` makes has tuples and dicts."""

    args: tuple[Nested, ...]
    kwargs: dict[str, Nested]
    output: Nested
    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def row_bytes(self) -> int:
        """Of a row's inputs or of its outputs, whichever are more."""
        return max(sum(leaf.row_bytes for leaf in leaves) for leaves in (self.inputs, self.outputs))

    def flatten_inputs(self, owner: str, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Any]:
        """The values at the leaves. Raises SpecMismatch, `owner` in front, that names what is missing or too much."""
        takes = f"{owner} takes {self.text}"
        if len(args) != len(self.args):
            raise SpecMismatch(f"{takes}: {len(self.args)} positional inputs; {len(args)} came")
        if missing := [name for name in self.kwargs if name not in kwargs]:
            raise SpecMismatch(f"{takes}: input {missing[0]} is missing")
        if unknown := [name for name in kwargs if name not in self.kwargs]:
            raise SpecMismatch(f"{takes}: there is no input {unknown[0][:64]}")
        pairs = [*zip(map(str, range(len(args))), self.args, args, strict=True)]
        pairs += [(name, nested, kwargs[name]) for name, nested in self.kwargs.items()]
        return [leaf for path, nested, value in pairs for leaf in _flatten(takes, f"input {path}", nested, value)]

    def unflatten_inputs(self, leaves: Sequence[_T]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's positional and named inputs, of as many leaves as there are inputs."""
        rest = iter(leaves)
        args = tuple([_unflatten(nested, rest) for nested in self.args])
        return args, {name: _unflatten(nested, rest) for name, nested in self.kwargs.items()}

    def flatten_output(self, owner: str, value: object) -> list[Any]:
        """The values at the leaves. Raises SpecMismatch, with `owner` in front."""
        return list(_flatten(f"{owner} must return {self.text}", "the output", self.output, value))

    def unflatten_output(self, leaves: Sequence[_T]) -> Any:
        return _unflatten(self.output, iter(leaves))


@lru_cache(maxsize=1024)
def parse_schema(text: str, float_dtype: DtypeName) -> Schema:
    """The schema of a layer of this dtype. Raises ConfigError that says where the text is none."""
    if len(text) > MAX_CHARS:
        raise ConfigError(f"schema: {len(text):,} characters; {MAX_CHARS:,} are allowed")
    reader = _Reader(text, float_dtype)
    args, kwargs = reader.call()
    reader.take("->")
    output = reader.value("", MAX_DEPTH)
    if isinstance(output, Leaf):
        output = replace(output, path="0")
    reader.end()
    inputs = tuple([leaf for nested in (*args, *kwargs.values()) for leaf in _leaves(nested)])
    outputs = tuple(_leaves(output))
    if not inputs or not outputs:
        raise ConfigError("schema: an expert takes at least one tensor and returns at least one")
    if len(inputs) + len(outputs) > MAX_TENSORS:
        raise ConfigError(f"schema: {len(inputs)} tensors in, {len(outputs)} out; {MAX_TENSORS} together are allowed")
    if whole := [leaf for leaf in outputs if not leaf.is_float]:
        raise ConfigError(f"schema: output {whole[0].path} is {whole[0].dtype}; outputs are float: they are mixed")
    return Schema(tuple(args), kwargs, output, inputs, outputs, " ".join(text.split()))


class _Reader:
    """From left to right through a text. Every method raises ConfigError that says where it stands."""

    def __init__(self, text: str, float_dtype: DtypeName) -> None:
        self._text = text
        self._float = float_dtype
        self._position = 0
        self._next: str | None = None
        self._after = 0
        self._look()

    def call(self) -> tuple[list[Nested], dict[str, Nested]]:
        """The inputs, in parentheses."""
        args: list[Nested] = []
        kwargs: dict[str, Nested] = {}
        self.take("(")
        while self._next != ")":
            start, name = self._position, self._name()
            if name and self._next == "=":
                self.take("=")
                if name in kwargs:
                    raise self._error(f"{name} comes twice")
                kwargs[name] = self.value(name, MAX_DEPTH)
            else:
                self._go_to(start)
                if kwargs:
                    raise self._error("a positional input behind a named one")
                args.append(self.value(str(len(args)), MAX_DEPTH))
            if self._next != ")":
                self.take(",")
        self.take(")")
        return args, kwargs

    def value(self, path: str, depth: int) -> Nested:
        if depth == 0:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        if self._next == "(":
            return self._tuple(path, depth)
        return self._dict(path, depth) if self._next == "{" else self._leaf(path)

    def _tuple(self, path: str, depth: int) -> Nested:
        values: list[Nested] = []
        self.take("(")
        while self._next != ")":
            values.append(self.value(_joined(path, str(len(values))), depth - 1))
            if self._next != ")":
                self.take(",")
        self.take(")")
        return tuple(values)

    def _dict(self, path: str, depth: int) -> Nested:
        values: dict[str, Nested] = {}
        self.take("{")
        while self._next != "}":
            name = self._name()
            if not name or name in values:
                raise self._error("a name of its own for each value is missing")
            self.take(":")
            values[name] = self.value(_joined(path, name), depth - 1)
            if self._next != "}":
                self.take(",")
        self.take("}")
        return values

    def _leaf(self, path: str) -> Leaf:
        name = self._name()
        dtype = self._float if name == FLOAT else next((known for known in WHOLE_BYTES if known == name), None)
        if dtype is None:
            raise self._error(f"a tensor is {FLOAT}[...] or of {', '.join(WHOLE_BYTES)}")
        self.take("[")
        shape: list[int] = []
        while self._next != "]":
            if self._next is None or not self._next.isdecimal() or not 1 <= int(self._next) <= MAX_SIZE:
                raise self._error(f"a size is a number from 1 to {MAX_SIZE:,}")
            shape.append(int(self._next))
            self._advance()
            if self._next != "]":
                self.take(",")
        self.take("]")
        if len(shape) > MAX_SIZES:
            raise self._error(f"{len(shape)} sizes; a row has up to {MAX_SIZES}")
        return Leaf(path, dtype, tuple(shape))

    def take(self, symbol: str) -> None:
        if self._next != symbol:
            raise self._error(f"{symbol!r} is expected")
        self._advance()

    def end(self) -> None:
        if self._next is not None:
            raise self._error("there is more than an output")

    def _name(self) -> str:
        """The name that comes next, taken; empty when something else does."""
        name = self._next
        if name is None or not (name[0].isalpha() or name[0] == "_"):
            return ""
        self._advance()
        return name

    def _advance(self) -> None:
        self._go_to(self._after)

    def _go_to(self, position: int) -> None:
        self._position = position
        self._look()

    def _look(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        if match is None and self._text[self._position :].strip():
            raise self._error("this means nothing")
        self._next = None if match is None else match[1] or match[2] or match[3]
        self._after = self._position if match is None else match.end()

    def _error(self, what: str) -> ConfigError:
        left = self._text[self._position :].strip()[:40]
        return ConfigError(f"schema: {what}, at {left!r}" if left else f"schema: {what}, at its end")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _leaves(nested: Nested) -> Iterator[Leaf]:
    if isinstance(nested, Leaf):
        yield nested
        return
    for part in nested.values() if isinstance(nested, dict) else nested:
        yield from _leaves(part)


def _flatten(takes: str, path: str, nested: Nested, value: object) -> Iterator[object]:
    if isinstance(nested, Leaf):
        yield value
    elif isinstance(nested, dict):
        if not isinstance(value, Mapping) or value.keys() != nested.keys():
            seen = f"has {', '.join(map(str, value))[:200]}" if isinstance(value, Mapping) else f"is a {_type(value)}"
            raise SpecMismatch(f"{takes}: {path} {seen} instead of {', '.join(nested)}")
        for name, part in nested.items():
            yield from _flatten(takes, f"{path}.{name}", part, value[name])
    else:
        if not isinstance(value, tuple | list) or len(value) != len(nested):
            seen = f"has {len(value)}" if isinstance(value, tuple | list) else f"is a {_type(value)}"
            raise SpecMismatch(f"{takes}: {path} {seen} instead of {len(nested)} values")
        for position, (part, own) in enumerate(zip(nested, value, strict=True)):
            yield from _flatten(takes, f"{path}.{position}", part, own)


def _type(value: object) -> str:
    return type(value).__name__


def _unflatten(nested: Nested, leaves: Iterator[_T]) -> Any:
    if isinstance(nested, Leaf):
        return next(leaves)
    if isinstance(nested, dict):
        return {name: _unflatten(part, leaves) for name, part in nested.items()}
    return tuple([_unflatten(part, leaves) for part in nested])
