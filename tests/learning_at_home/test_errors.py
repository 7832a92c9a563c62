"""The tree of errors, its codes, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from learning_at_home import errors
from learning_at_home.errors import CATALOGUE, LearningAtHomeError, NodeOverloaded, PeerError, from_wire

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def test_the_page_lists_exactly_the_codes_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert {int(code): name for code, name in rows} == {code: cls.__name__ for code, cls in CATALOGUE.items()}
    assert len(rows) == len(CATALOGUE)


def test_no_two_errors_share_a_code() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LearningAtHomeError)]
    assert len({c.code for c in classes}) == len(classes)


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_comes_back_from_the_wire_with_its_peer(code: int) -> None:
    error = from_wire(code, "words", peer="brisk-heron", retry_after_s=0.5)
    assert str(error) == "words (from brisk-heron)"
    assert isinstance(error, (CATALOGUE[code], PeerError))


def test_an_unknown_code_and_hostile_words_stay_harmless() -> None:
    error = from_wire(999, "\x1b[31mred\x07" + "x" * 5_000, peer="odd")
    assert isinstance(error, PeerError)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 2_200


def test_the_retry_hint_is_kept() -> None:
    error = from_wire(203, "full", peer="odd", retry_after_s=0.25)
    assert isinstance(error, NodeOverloaded)
    assert error.retry_after_s == 0.25
