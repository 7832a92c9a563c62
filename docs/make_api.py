"""Write docs/api.md from the docstrings: `python -m docs.make_api [FILE]`.

Reads the sources' syntax trees and imports none of it, so that the page is the same on every machine and version of
Python. What is public: the names of `learning_at_home.__all__`, what their calls return (RETURNED), and of each class
what does not begin with an underscore. A field's comment is its text.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "learning_at_home"
INTRODUCTION = """\
# The Python API

All that `import learning_at_home as lah` offers, written by `make api` from the docstrings. A name below is imported as
`lah.DMoE`; what only comes back from a call (`Trace`, `NodeStats` ...) has the module that it lives in beside its name.
A first walk through it: [quickstart](quickstart.md); errors by their codes: [errors](errors.md).
"""
# Chapter -> names in order. Errors stand at the end, as the tree that they are.
CHAPTERS = {
    "Training": (
        "Swarm",
        "DMoE",
        "SwitchDMoE",
        "GatingFunction",
        "Chosen",
        "RemoteExpert",
        "SharedParameters",
        "SharedStats",
        "SwarmStats",
        "Pipeline",
        "Step",
    ),
    "Reports": ("CsvSink", "TensorBoardSink"),
    "The project and its parts": ("ProjectRecord", "LayerSpec", "OptimizerSpec", "ExpertUid", "Identity"),
}
# What public calls return and nobody makes: class -> its module.
RETURNED = {
    "NodeStats": "client.stats",
    "Usage": "client.usage",
    "LayerView": "directory.directory",
    "DirectorySource": "directory.mirror",
    "Trace": "client.tracing",
    "RoundSpan": "client.trace_spans",
    "SectionSpan": "client.trace_spans",
    "CallSpan": "client.trace_spans",
    "Grid": "expert_uid",
    "PeerAddress": "peer_address",
}
# Public by name, and made by the library only: their constructors are not for callers.
NOT_MADE = {*RETURNED, "Chosen", "SharedParameters", "SharedStats", "Swarm", "SwarmStats"}
# Public by name, and called by the library's other files only.
NOT_CALLED = {
    "RemoteExpert.call",
    "RemoteExpert.calls",
    "RemoteExpert.tensors_of",
    "RemoteExpert.task",
    "RemoteExpert.tensor_of",
    "Swarm.living",
    "Trace.begin_round",
}
MADE_BY_CALLS = "What calls return"
ERRORS = "Errors"
ERRORS_INTRODUCTION = """\
`error.message` is the text without the peer, `error.peer` the readable name of the peer that said so (None: found
here), `error.retry_after_s` the seconds to wait where the peer named them. What to do about each: [errors](errors.md).
"""
# Part of PyTorch's own contract: there is nothing to say of them that is not said there.
WITHOUT_WORDS = {"extra_repr"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Member:
    """A method, property or field of a public class."""

    name: str
    signature: str
    doc: str
    node: Definition | ast.AnnAssign

    @property
    def is_field(self) -> bool:
        return isinstance(self.node, ast.AnnAssign)


@dataclass(frozen=True, slots=True)
class PublicName:
    """A public class or function as its source says it."""

    name: str
    module: str  # "learning_at_home.client.dmoe"
    signature: str  # empty where nobody but the library makes one
    doc: str
    node: ast.ClassDef | Definition
    members: tuple[Member, ...] = ()

    @property
    def bases(self) -> list[str]:
        return [ast.unparse(base) for base in self.node.bases] if isinstance(self.node, ast.ClassDef) else []


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    source: str
    comments: dict[int, str]  # by line
    lines: list[bytes]  # the syntax tree counts columns in bytes

    @classmethod
    def read(cls, name: str) -> _Module:
        source = (ROOT / (name.replace(".", "/") + ".py")).read_text("utf-8")
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        return cls(name, source, comments, source.encode().splitlines(keepends=True))

    def definitions(self) -> dict[str, ast.ClassDef | Definition]:
        return {node.name: node for node in ast.parse(self.source).body if isinstance(node, ast.ClassDef | Definition)}

    def text(self, node: ast.expr | ast.stmt) -> str:
        """As it is written, on one line."""
        assert node.end_lineno is not None
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return re.sub(r"\s*\n\s*", " ", b"".join(lines).decode())


def module_of_public_names() -> dict[str, str]:
    """Every name of `__all__` -> its module, as the package's own table has it. Read, not imported."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("_MODULE_OF", "__all__")
    }
    return {name: f"{PACKAGE}.{tables['_MODULE_OF'].get(name, 'errors')}" for name in tables["__all__"]}


def public_names() -> dict[str, PublicName]:
    """Every public class or function, and the classes that public calls return, by name."""
    places = {name: module for name, module in module_of_public_names().items() if name != "__version__"}
    places |= {name: f"{PACKAGE}.{module}" for name, module in RETURNED.items()}
    modules = {name: _Module.read(name) for name in sorted(set(places.values()))}
    return {name: _read_public(modules[module], name) for name, module in places.items()}


def render() -> str:
    """The whole page. Raises KeyError for a public name that has no chapter."""
    classes = public_names()
    of_errors = [name for name in classes if classes[name].module == f"{PACKAGE}.errors"]
    chapters = {**CHAPTERS, MADE_BY_CALLS: tuple(RETURNED)}
    homeless = set(classes) - set(of_errors) - {name for names in chapters.values() for name in names}
    if homeless:
        raise KeyError(f"no chapter of docs/make_api.py names {', '.join(sorted(homeless))}")
    parts = [INTRODUCTION]
    for chapter, names in chapters.items():
        parts.append(f"## {chapter}\n")
        parts += [part for name in names for part in _parts(classes[name])]
    parts.append(f"## {ERRORS}\n")
    parts += _error_parts({name: classes[name] for name in of_errors})
    parts.append("## `__version__`\n\nThe version of this installation, as text.\n")
    return "\n".join(parts)


def _read_public(module: _Module, name: str) -> PublicName:
    node = module.definitions()[name]
    if not isinstance(node, ast.ClassDef):
        return PublicName(name, module.name, _signature(module, node), ast.get_docstring(node) or "", node)
    members = tuple(_members(module, node))
    made = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if name in NOT_MADE:
        signature, made = "", None
    elif made is not None:
        signature = name + _arguments(module, made)
    else:  # a dataclass or Struct
        fields = [member.signature for member in members if member.is_field]
        star = ["*"] if any(keyword.arg == "kw_only" for keyword in node.keywords) else []
        signature = f"{name}({', '.join(star + fields)})"
    words = [ast.get_docstring(node) or "", (ast.get_docstring(made) or "") if made else ""]
    return PublicName(name, module.name, signature, "\n\n".join(filter(None, words)), node, members)


def _members(module: _Module, node: ast.ClassDef) -> Iterator[Member]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if not item.target.id.startswith("_"):
                yield Member(item.target.id, module.text(item), module.comments.get(item.lineno, ""), item)
        elif isinstance(item, Definition) and not item.name.startswith("_"):
            if item.name in WITHOUT_WORDS or f"{node.name}.{item.name}" in NOT_CALLED:
                continue
            yield Member(item.name, _signature(module, item), ast.get_docstring(item) or "", item)


def _signature(module: _Module, node: Definition) -> str:
    marks = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {module.text(node.returns)}" if node.returns else ""
    if marks & {"property", "cached_property"}:
        return f"{node.name}{returns.replace(' ->', ':')}"
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    start = "@classmethod\n" + start if "classmethod" in marks else start
    return f"{start}{node.name}{_arguments(module, node)}{returns}"


def _arguments(module: _Module, node: Definition) -> str:
    """As they are written, without self or cls; one per line where one line is too short for them."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    written = [_argument(module, *pair) for pair in zip(plain, defaults, strict=True)]
    if plain and plain[0].arg in ("self", "cls"):
        del written[0]
    if given.vararg:
        written.append("*" + _argument(module, given.vararg, None))
    elif given.kwonlyargs:
        written.append("*")
    written += [_argument(module, *pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        written.append("**" + _argument(module, given.kwarg, None))
    return f"({', '.join(written)})"


def _argument(module: _Module, argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {module.text(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return argument.arg + annotation
    return f"{argument.arg}{annotation}{' = ' if annotation else '='}{module.text(default)}"


def _parts(public: PublicName) -> Iterator[str]:
    home = f" ({public.module})" if public.name in RETURNED else ""
    yield f"### {public.name}{home}\n"
    if public.signature:
        yield _code(public.signature)
    yield _prose(public.doc)
    fields = [member for member in public.members if member.is_field]
    if fields:
        yield _field_list(fields)
    for member in public.members:
        if not member.is_field:
            yield f"#### {public.name}.{member.name}\n"
            yield _code(member.signature)
            yield _prose(member.doc)


def _field_list(fields: list[Member]) -> str:
    return "".join(f"- `{member.signature}`{': ' + _prose(member.doc) if member.doc else chr(10)}" for member in fields)


def _error_parts(errors: dict[str, PublicName]) -> Iterator[str]:
    """A list as deep as the tree of errors, parents first."""

    def lines(parent: str, depth: int) -> Iterator[str]:
        for name, error in errors.items():
            if parent in error.bases:
                code = next(
                    ast.literal_eval(item.value)
                    for item in error.node.body
                    if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None
                )
                yield f"{'  ' * depth}- **{name}** ({code}): {' '.join(_prose(error.doc).split())}"
                yield from lines(name, depth + 1)

    yield ERRORS_INTRODUCTION
    yield "\n".join(lines("Exception", 0)) + "\n"


def _code(signature: str) -> str:
    return f"```python\n{_broken(signature)}\n```\n"


def _broken(signature: str) -> str:
    """One argument per line where the whole is too long for one."""
    start, bracket, rest = signature.partition("(")
    if len(signature) <= 110 or not bracket:
        return signature
    depth, pieces, piece = 0, [], ""
    for position, character in enumerate(rest):
        if character == ")" and depth == 0:
            pieces.append(piece)
            return f"{start}(\n" + "".join(f"    {part.strip()},\n" for part in pieces) + rest[position:]
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            pieces.append(piece)
            piece = ""
        else:
            piece += character
    return signature


def _prose(doc: str) -> str:
    """A docstring as Markdown: what is not code must show its stars and angles."""
    pieces = re.split(r"(`[^`]*`)", inspect.cleandoc(doc))
    shown = [piece if piece.startswith("`") else re.sub(r"([*<])", r"\\\1", piece) for piece in pieces]
    return "".join(shown) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page; 0."""
    path = Path(arguments[0]) if arguments else PAGE
    path.write_text(render(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
