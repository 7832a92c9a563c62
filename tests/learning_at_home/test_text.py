"""What people see of text that strangers wrote."""

from __future__ import annotations

import pytest

from learning_at_home.text import printable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("brisk heron, 4 experts", "brisk heron, 4 experts"),
        ("Zürich – 東京", "Zürich – 東京"),
        ("\x1b[2Jgone\x07", "?[2Jgone?"),
        ("two\nlines\r\t", "two?lines??"),
        ("\u202eevil", "?evil"),
        ("x" * 300, "x" * 200),
    ],
)
def test_nothing_in_it_steers_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
