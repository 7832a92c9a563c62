"""What the demo says, where, and in which order."""

from __future__ import annotations

import io
import json

from learning_at_home.demo.screen import ERASE_LINE, LOG_INTERVAL_S, DemoResult, Screen
from learning_at_home.demo.trainer_messages import Progress

RESULT = DemoResult(0.9012345, 400, 3_500.12345, 25_600, 2, 12_798, 81.23456)
PROGRESS = Progress(step=10, steps=400, loss=2.0, accuracy=None, rows_per_second=900.0, remaining_s=60.0)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_address_comes_first_and_the_result_is_the_last_line_as_json_when_headless():
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err, headless=True)

    screen.address("http://127.0.0.1:8765/p/digits")
    screen.progress(PROGRESS, now=0.0)
    screen.result(RESULT, goal=0.85)

    first, last = out.getvalue().splitlines()
    assert first == "dashboard: http://127.0.0.1:8765/p/digits"
    assert json.loads(last) == {
        "accuracy": 0.9012,
        "steps": 400,
        "rows_per_second": 3500.1235,
        "calls": 25_600,
        "failures": 2,
        "expert_updates": 12_798,
        "seconds": 81.2346,
    }
    assert err.getvalue() == ""


def test_on_a_terminal_one_line_is_rewritten_and_news_get_lines_of_their_own():
    out, err = io.StringIO(), Terminal()
    screen = Screen(out, err, headless=False)

    screen.progress(PROGRESS, now=0.0)
    screen.progress(PROGRESS, now=0.1)
    screen.news("a node left")

    erased, first, second = err.getvalue().split(ERASE_LINE)
    assert erased == ""
    assert "\n" not in first
    assert second.endswith("\na node left\n")


def test_elsewhere_a_line_is_added_now_and_then():
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err, headless=False)

    for now in (0.0, 1.0, LOG_INTERVAL_S - 0.1, LOG_INTERVAL_S, LOG_INTERVAL_S + 1):
        screen.progress(PROGRESS, now=now)

    assert err.getvalue().count("step 10/400") == 2
    assert out.getvalue() == ""


def test_a_person_reads_the_result_as_a_sentence():
    out = io.StringIO()

    Screen(out, io.StringIO(), headless=False).result(RESULT, goal=0.85)

    assert out.getvalue() == (
        "test accuracy 0.901: the goal of 0.85 is reached. 400 steps in 1 min 21 s, 3,500 rows/s,"
        " 25,600 calls to experts, 2 failed, 12,798 updates of experts.\n"
    )
