"""House rules that a linter of the shelf does not know: what may not be written anywhere, and what needs a reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = [
    "learning_at_home",
    "node_agent",
    "backend",
    "dashboard",
    "migrations",
    "benchmarks",
    "docs",
    "experiments",
    "examples",
]
PAGE_FOLDERS = ["templates", "static"]

MAX_LINES = 400  # above this a file most often holds two concepts (style, rule 2)
# path -> why it may be longer
LONGER_FILES: dict[str, str] = {}

# Modules whose loading functions run what the bytes say.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "joblib", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec"}
UNSAFE_METHODS = {"recv_pyobj", "send_pyobj"}
# Addresses that name a format or a licence and are never fetched.
NAMESPACES = ("http://www.w3.org/",)
# Hosts reserved for examples (RFC 2606), as in a command to copy.
EXAMPLE_HOST = re.compile(r"//[a-z0-9.-]+\.example\b")


def python_files() -> list[Path]:
    return [path for folder in CODE_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def page_files() -> list[Path]:
    kinds = {".html", ".jinja", ".j2", ".js", ".mjs", ".css", ".svg", ".json", ".webmanifest"}
    return [
        path
        for folder in PAGE_FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in kinds and "vendor" not in path.parts
    ]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unsafe_places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything in `tree` that could turn foreign bytes into running code."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.partition(".")[0] in UNSAFE_MODULES:
                        yield node.lineno, f"import {alias.name}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in UNSAFE_MODULES:
                yield node.lineno, f"from {module} import"
            case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_BUILTINS:
                yield node.lineno, f"{name}()"
            case ast.Call(func=ast.Attribute(attr=name)) if name in UNSAFE_METHODS:
                yield node.lineno, f".{name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
                if not any(_is_true(keyword, "weights_only") for keyword in keywords):
                    yield node.lineno, "torch.load() without weights_only=True"


def _is_true(keyword: ast.keyword, name: str) -> bool:
    return keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value is True


def test_no_code_unpickles_or_evaluates_anything():
    found = [
        f"{shown(path)}:{line}: {what}"
        for path in python_files()
        for line, what in unsafe_places(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "socket.recv_pyobj()",
    ],
)
def test_the_search_for_unsafe_code_finds_it(code: str):
    assert len(list(unsafe_places(ast.parse(code)))) == 1


def test_the_search_for_unsafe_code_passes_what_is_safe():
    assert (
        list(unsafe_places(ast.parse("torch.load(path, weights_only=True)\nmodel.eval()\nmsgspec.msgpack.decode(b)")))
        == []
    )


def test_no_page_names_another_host():
    """A page that fetched a font or a script elsewhere would tell a third party who looks at it, and fail offline.

    Links that a person may follow (`<a href=...>`) are not fetched and stay allowed.
    """
    found = []
    for path in page_files():
        text = re.sub(r"<a\s[^>]*>", "", path.read_text(encoding="utf-8"))
        for match in re.finditer(r"(?:https?:|wss?:)?//[a-z0-9-]+(?:\.[a-z0-9-]+)+[^\s\"'`)]*", text, re.IGNORECASE):
            if not match.group().startswith(NAMESPACES) and not EXAMPLE_HOST.search(match.group()):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{shown(path)}:{line}: {match.group()}")

    assert found == []


def test_vendored_files_come_with_their_licence():
    vendored = [path for path in (ROOT / "static").rglob("*") if path.is_file() and "vendor" in path.parts]
    unlicensed = {
        shown(path.parent)
        for path in vendored
        if not any("licen" in beside.name.lower() for beside in path.parent.iterdir())
    }

    assert unlicensed == set()


def test_every_long_file_is_listed_with_a_reason():
    long_files = {
        shown(path): lines
        for path in python_files()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_LINES
    }

    assert {path: lines for path, lines in long_files.items() if path not in LONGER_FILES} == {}


def test_the_list_of_long_files_holds_no_file_that_became_short():
    assert [path for path in LONGER_FILES if (ROOT / path).read_text(encoding="utf-8").count("\n") <= MAX_LINES] == []


def test_no_file_names_a_path_of_one_machine():
    machine_path = re.compile(r"(?<![A-Za-z0-9_.*/-])/(?:work|root|farm|home/[a-z]+)/[A-Za-z]")
    texts = [*python_files(), *page_files(), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    found = [
        f"{shown(path)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if machine_path.search(line)
    ]

    assert found == []
