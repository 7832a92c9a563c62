"""Ratios, bars and the shape of the JSON file."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks import render
from benchmarks.plot import log_log_plot
from benchmarks.report import read_json, shown, table, write_json
from benchmarks.rows import Bar, alone, broken, compared

TIME = Bar("a-call", "a rival", 2.0, "s")
RATE = Bar("calls", "a rival", 2.0, "1/s")


def test_a_shorter_time_is_a_larger_ratio():
    row = compared(TIME, [(0.5, 1.0), (0.5, 1.5), (0.5, 2.5)])

    assert (row.ours, row.reference_value, row.ratio, row.spread) == (0.5, 1.5, 3.0, (2.0, 5.0))


def test_a_higher_rate_is_a_larger_ratio():
    assert compared(RATE, [(300.0, 100.0)]).ratio == 3.0


def test_the_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians():
    row = compared(TIME, [(1.0, 1.0), (10.0, 30.0), (100.0, 200.0)])

    assert row.ratio == 2.0
    assert row.reference_value == 30.0
    assert row.ours == 10.0


@pytest.mark.parametrize("reference, holds", [(2.0, True), (1.99, False)])
def test_a_row_holds_from_its_bar_on(reference: float, holds: bool):
    assert compared(TIME, [(1.0, reference)]).holds is holds


def test_a_row_without_a_reference_is_open_and_says_why():
    row = alone(TIME, [1.0, 3.0, 2.0], "not installed")

    assert (row.ours, row.reference_value, row.ratio, row.holds, row.why) == (2.0, None, None, None, "not installed")


def test_a_row_of_ours_that_fails_does_not_hold():
    assert broken(TIME, "it raised").holds is False


def test_the_json_file_has_the_documented_shape(tmp_path):
    path = tmp_path / "figures.json"

    write_json(path, "expert_calls", [compared(TIME, [(0.5, 1.0)]), alone(RATE, [], "left out")], 93.14)

    written = json.loads(path.read_text())
    assert list(written) == ["benchmark", "machine", "seconds", "rows"]
    assert list(written["machine"]) == ["cpu", "cores", "python", "torch", "device"]
    assert written["seconds"] == 93.1
    assert written["rows"][0] == {
        "row": "a-call",
        "ours": 0.5,
        "unit": "s",
        "reference": "a rival",
        "reference_value": 1.0,
        "ratio": 2.0,
        "bar": 2.0,
        "holds": True,
        "runs": 1,
        "spread": [2.0, 2.0],
    }
    assert written["rows"][1]["holds"] is None
    assert written["rows"][1]["why"] == "left out"


def test_the_table_shows_units_that_people_read():
    assert [shown(value, "s") for value in (0.00058, 0.0092, 2.5)] == ["580 µs", "9.2 ms", "2.5 s"]
    assert shown(5_210.4, "1/s") == "5,210 1/s"
    assert shown(5.07e9, "bytes") == "5.07 GB"
    assert shown(None, "s") == "-"


def test_the_table_has_a_line_per_row_and_says_below_why_one_is_open():
    lines = table([compared(TIME, [(1.0, 1.0)]), alone(RATE, [], "left out")]).splitlines()

    assert lines[2].split()[0] == "a-call"
    assert "NO" in lines[2]
    assert lines[-1] == "calls (a rival): left out"


def test_a_json_file_is_rendered_for_the_docs(tmp_path, capsys):
    path = tmp_path / "figures.json"
    rows = [compared(TIME, [(0.5, 1.0)]), alone(RATE, [], "left out")]
    write_json(path, "expert_calls", rows, 1.0)

    assert read_json(path) == rows
    assert render.main([str(path)]) == 0
    assert "| a-call | 500 ms | a rival | 1 s | 2 | 2 | yes | 2 to 2 |" in capsys.readouterr().out


def test_a_plot_is_one_picture_with_a_line_per_series():
    picture = ElementTree.fromstring(
        log_log_plot("costs < gains", "rows", "ms", {"ours": [(1, 0.5), (2048, 30.0)], "theirs": [(1, 9.0)]})
    )

    lines = [element.get("points") for element in picture if element.tag.endswith("polyline")]
    texts = [element.text for element in picture if element.tag.endswith("text")]
    assert len(lines) == 2
    assert {"costs < gains", "ours", "theirs", "rows", "ms"} <= set(texts)
