"""The stylesheet's tokens: enough contrast, the same by button and by system, and the only colours there are."""

import re
from pathlib import Path

import pytest

from dashboard.locate import static_folder
from dashboard.view import HEALTHS

TEXTS = ["ink", "soft", "faint", "accent", "serving", "degraded", "lost", "orphaned"]
MARKS = [*HEALTHS, "accent", "series-1", "series-2", "series-3", "series-4", "series-5"]
GROUNDS = ["ground", "surface", "raised"]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_and_marks_stand_out_from_every_ground(theme: str):
    tokens = colour_tokens(static_folder() / "style.css", theme)
    weak = [
        (name, ground, round(contrast(tokens[name], tokens[ground]), 2))
        for names, least in ((TEXTS, 4.5), (MARKS, 3.0))
        for name in names
        for ground in GROUNDS
        if contrast(tokens[name], tokens[ground]) < least
    ]

    assert weak == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_words_in_a_cell_can_be_read_at_every_brightness(theme: str):
    tokens = colour_tokens(static_folder() / "style.css", theme)
    ink, surface = tokens["ink"], tokens["surface"]
    for colour in ("serving", "accent"):
        for percent in (16, 30, 50):  # WORDS_LEAST to WORDS_MOST of grid_paint.js
            fill = tuple(
                round(a * percent / 100 + b * (1 - percent / 100)) for a, b in zip(tokens[colour], surface, strict=True)
            )
            assert contrast(ink, fill) >= 4.5, (theme, colour, percent)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_button_and_the_system_bring_the_same_theme(theme: str):
    css = (static_folder() / "style.css").read_text(encoding="utf-8")
    by_button = block_after(css, f':root[data-theme="{theme}"]')
    by_system = block_after(css, "prefers-color-scheme: dark") if theme == "dark" else block_after(css, ":root {")

    assert tokens_of(by_button).items() <= tokens_of(by_system).items()


def test_only_the_tokens_name_colours():
    css = (static_folder() / "style.css").read_text(encoding="utf-8")
    rules = css[css.index("/* Ground */") :]

    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb\(|hsl\(", rules) == []


def colour_tokens(path: Path, theme: str) -> dict[str, tuple[int, int, int]]:
    return tokens_of(block_after(path.read_text(encoding="utf-8"), f':root[data-theme="{theme}"]'))


def block_after(css: str, opening: str) -> str:
    start = css.index(opening)
    return css[start : css.index("\n}", start)]


def tokens_of(block: str) -> dict[str, tuple[int, int, int]]:
    found = re.findall(r"--([a-z0-9-]+): #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2});", block)
    return {name: (int(red, 16), int(green, 16), int(blue, 16)) for name, red, green, blue in found}


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """As the Web Content Accessibility Guidelines 2.2 define it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    linear = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
