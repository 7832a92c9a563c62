"""The documents lead somewhere, and print the examples as they are: tests/end_to_end runs those."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
_EXAMPLE = re.compile(r"<!-- (examples/\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_exists(document: Path) -> None:
    links = [link for link in _LINK.findall(document.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_shows_the_live_page() -> None:
    assert "(docs/screenshots/overview-dark.png)" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_printed_example_is_its_file_to_the_letter(document: Path) -> None:
    for name, block in _EXAMPLE.findall(document.read_text("utf-8")):
        assert block == (ROOT / name).read_text("utf-8"), f"{document.name} prints another {name}"


@pytest.mark.parametrize(
    "document, examples",
    [
        ("README.md", {"examples/train_digits.py"}),
        ("docs/quickstart.md", {"examples/spirals.toml", "examples/spirals.py"}),
    ],
)
def test_who_prints_which_example(document: str, examples: set[str]) -> None:
    text = (ROOT / document).read_text("utf-8")

    assert {name for name, _ in _EXAMPLE.findall(text)} == examples
    assert text.count("```python\n") == sum(name.endswith(".py") for name in examples)  # none that no test would run
