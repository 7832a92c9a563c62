"""The line that shows where the training stands."""

from __future__ import annotations

import pytest

from learning_at_home.demo.progress_bar import bar_line, duration, log_line
from learning_at_home.demo.trainer_messages import Progress, Waiting

HALFWAY = Progress(step=200, steps=400, loss=0.7125, accuracy=0.8514, rows_per_second=3_412.4, remaining_s=31.2)
WORDS = "step 200/400 · loss 0.713 · accuracy 0.851 · 3,412 rows/s · 31 s left"


def test_the_bar_is_as_full_as_the_training_is_far():
    line = bar_line(HALFWAY, columns=200)

    assert line == "█" * 20 + "░" * 20 + " " + WORDS


@pytest.mark.parametrize("columns", [1, 20, 40, 73, 74, 80, 120, 300])
def test_the_line_never_wraps(columns):
    assert len(bar_line(HALFWAY, columns)) <= columns
    assert len(bar_line(Waiting(alive=3, wanted=32), columns)) <= columns


def test_a_narrow_terminal_gets_the_numbers_without_a_bar():
    assert bar_line(HALFWAY, columns=len(WORDS) + 3) == WORDS


def test_a_terminal_without_block_characters_gets_plain_ones():
    assert bar_line(HALFWAY, columns=200, ascii_only=True).startswith("#" * 20 + "." * 20)


def test_before_the_first_evaluation_the_accuracy_is_a_dash():
    first = Progress(step=1, steps=400, loss=2.3, accuracy=None, rows_per_second=100.0, remaining_s=None)

    assert log_line(first) == "step 1/400 · loss 2.300 · accuracy - · 100 rows/s"


def test_waiting_for_experts_says_how_many_there_are():
    assert log_line(Waiting(alive=16, wanted=32)) == "16 of 32 experts alive"


@pytest.mark.parametrize("seconds, words", [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s")])
def test_durations_are_written_for_people(seconds, words):
    assert duration(seconds) == words
