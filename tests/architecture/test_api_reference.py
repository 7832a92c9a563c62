"""docs/api.md is what the docstrings say, and they say what style demands: the result first, shapes, every error."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

import learning_at_home
from docs.make_api import PAGE, Member, PublicName, public_names, render
from learning_at_home.errors import CATALOGUE

NAMES = public_names()
ERRORS = {error.__name__ for error in CATALOGUE.values()}
MEMBERS = [(public, member) for public in NAMES.values() for member in public.members]
CALLABLES = [(public, member) for public, member in MEMBERS if not member.is_field]
MAX_LINE_CHARS = 120


def shown(public: PublicName, member: Member) -> str:
    return f"{public.name}.{member.name}"


def errors_raised_in(node: ast.AST) -> Iterator[str]:
    """The names of our errors that this code itself raises."""
    for inner in ast.walk(node):
        match inner:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if name in ERRORS:
                yield name


def says_result_first(doc: str) -> bool:
    """A sentence of its own on the first line that begins with what the caller gets; no list of arguments."""
    first = doc.split("\n")[0]
    return (
        first.endswith((".", ":"))
        and len(first) <= MAX_LINE_CHARS
        and not first.startswith(("Raises", "Return", "This "))
        and not re.search(r":param|:return|^(Args|Returns|Raises):", doc, re.MULTILINE)
    )


def test_the_page_is_what_the_docstrings_say_now():
    assert PAGE.read_text("utf-8") == render(), "run `make api`"


def test_the_page_has_every_public_name():
    headed = set(re.findall(r"^(?:### |## | *- \*\*)`?(\w+)", PAGE.read_text("utf-8"), re.MULTILINE))

    assert set(learning_at_home.__all__) - headed == set()


@pytest.mark.slow  # imports torch
def test_the_signatures_on_the_page_are_those_that_python_sees():
    """The page is made from the sources' text: this compares the parameters with those of the imported classes."""
    signed = [public for public in NAMES.values() if public.signature and not public.module.endswith(".errors")]
    written, seen = {}, {}
    for public in signed:
        (function,) = ast.parse(f"def {public.signature}: ...").body
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        written[public.name] = [(one.arg, "by position") for one in given.args]
        written[public.name] += [(one.arg, "by name") for one in given.kwonlyargs]
        parameters = inspect.signature(getattr(learning_at_home, public.name)).parameters.values()
        seen[public.name] = [
            (one.name, "by name" if one.kind == one.KEYWORD_ONLY else "by position") for one in parameters
        ]

    assert len(signed) >= 8
    assert written == seen


def test_every_public_name_says_what_it_is():
    assert [public.name for public in NAMES.values() if not public.doc] == []


def test_every_public_method_says_its_result_first():
    assert [shown(*pair) for pair in CALLABLES if not says_result_first(pair[1].doc)] == []


def test_the_check_for_the_result_first_sees_what_lacks_it():
    bad = ["", "Raises WireError.", "Rows\nof all.", "Rows.\n\n:param x: rows", "Rows.\n\nArgs:\n    x: rows"]

    assert [doc for doc in bad if says_result_first(doc)] == []
    assert says_result_first("Rows [R, D], the best first.\n\nRaises WireError.")


def test_every_field_that_people_write_is_told():
    """By a comment behind it, or by its name in the class's docstring. What calls return is left to its names."""
    untold = [
        shown(public, member)
        for public, member in MEMBERS
        if member.is_field and public.signature and not (member.doc or f"`{member.name}`" in public.doc)
    ]

    assert untold == []


def test_every_error_that_a_public_call_raises_itself_is_named():
    """In the method's docstring or its class's; for constructors and `with`, in the class's."""
    calls = [(shown(public, member), member.node, member.doc + public.doc) for public, member in CALLABLES]
    calls += [
        (f"{public.name}.{item.name}", item, public.doc)
        for public in NAMES.values()
        for item in [public.node, *public.node.body]
        if isinstance(item, ast.FunctionDef) and (item is public.node or item.name.startswith("__"))
    ]
    unnamed = {name: lacking for name, node, doc in calls if (lacking := set(errors_raised_in(node)) - _words(doc))}

    assert unnamed == {}


def test_every_method_on_tensors_tells_their_shapes():
    without = [
        shown(public, member)
        for public, member in CALLABLES
        if re.search(r"\bTensor\b", member.signature)
        and not re.search(r"\[[^\]]*\]|shape|scalar", member.doc + public.doc)
    ]

    assert without == []


def _words(doc: str) -> set[str]:
    return set(re.findall(r"\w+", doc))
