import math

import pytest

from dashboard import formatting
from tests.dashboard.format_cases import CASES, SCALED


@pytest.mark.parametrize(
    "name,value,text", [(name, value, text) for name, cases in CASES.items() for value, text in cases]
)
def test_a_number_reads_as_people_say_it(name: str, value: float | None, text: str):
    assert formatting.FILTERS[name](value) == text


@pytest.mark.parametrize("value,unit,words", SCALED)
def test_a_large_number_takes_a_prefix(value: float | None, unit: str, words: tuple[str, str]):
    assert formatting.scaled(value, unit) == words


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(name: str, value: float):
    assert formatting.FILTERS[name](value).startswith("–")


def test_a_grid_is_written_with_crosses():
    assert formatting.shape((16, 32)) == "16 × 32"


def test_a_time_of_day_names_its_zone():
    assert formatting.clock(1_790_000_000.9) == "14:13:20 UTC"


@pytest.mark.parametrize("number,words", [(0, "0 nodes"), (1, "1 node"), (1_200, "1,200 nodes")])
def test_one_is_not_many(number: int, words: str):
    assert formatting.plural(number, "node") == words
