"""Two sides in turn: who runs when, and what becomes of a row when one of them fails."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.pairs import Comparison, Skipped, Task, measure
from benchmarks.rows import Bar
from benchmarks.sides import Side, SideFailed, Sides, SideSpec
from benchmarks.worker import Work

BAR = Bar("a-call", "a rival", 2.0, "s")
WORK = Work(name="anything")
pytestmark = pytest.mark.slow  # a process each


@pytest.fixture
def sides() -> Iterator[Sides]:
    with Sides() as opened:
        yield opened


def side(value: float = 1.0, **settings: object) -> SideSpec:
    return SideSpec(f"side {value:g}", "tests.benchmarks.echoing_worker", {"value": value, **settings})


def statuses(running: Side) -> set[str]:
    root = psutil.Process(running._process.pid)
    return {process.status() for process in (root, *root.children(recursive=True))}


def test_ours_and_the_reference_take_turns_after_a_pair_that_does_not_count(sides: Sides, tmp_path: Path):
    log = str(tmp_path / "log")

    row = measure(Comparison(BAR, Task(side(1.0, log=log), WORK), Task(side(3.0, log=log), WORK)), sides, runs=2)

    assert (row.ratio, row.holds, row.runs) == (3.0, True, 2)
    assert Path(log).read_text().splitlines() == ["1 anything", "3 anything"] * 3


def test_who_is_not_being_timed_is_stopped_with_all_its_children(sides: Sides):
    ours = Task(side(1.0), WORK)
    ours.measured(sides)

    waiting = sides.start(ours.side)
    assert statuses(waiting) == {psutil.STATUS_STOPPED}

    waiting.resume()
    assert psutil.STATUS_STOPPED not in statuses(waiting)


def test_a_fixed_limit_is_a_reference(sides: Sides):
    row = measure(Comparison(BAR, Task(side(2.0), WORK), 6.0), sides, runs=1)

    assert (row.reference_value, row.ratio) == (6.0, 3.0)


def test_what_is_measured_once_has_no_warm_up(sides: Sides, tmp_path: Path):
    log = str(tmp_path / "log")

    measure(Comparison(BAR, Task(side(1.0, log=log), WORK), 6.0, once=True), sides, runs=5)

    assert Path(log).read_text().splitlines() == ["1 anything"]


@pytest.mark.parametrize("place", ["start", "check", "measure"])
def test_ours_that_fails_does_not_hold_and_says_why(sides: Sides, place: str):
    row = measure(Comparison(BAR, Task(side(fails_at=place), WORK), 6.0), sides, runs=1)

    assert row.holds is False
    assert row.why == f"side 1: AssertionError: told to fail at {place}"


@pytest.mark.parametrize("place", ["start", "check", "measure"])
def test_a_reference_that_fails_leaves_the_row_open_with_our_figure(sides: Sides, place: str):
    row = measure(Comparison(BAR, Task(side(2.0), WORK), Task(side(3.0, fails_at=place), WORK)), sides, runs=1)

    assert (row.ours, row.reference_value, row.holds) == (2.0, None, None)
    assert row.why == f"side 3: AssertionError: told to fail at {place}"


def test_a_worker_that_dies_leaves_its_last_words(sides: Sides):
    with pytest.raises(SideFailed, match=r"side 1 ended: some last words"):
        Task(side(), Work(name="exit")).measured(sides)


def test_nothing_of_a_side_outlives_it():
    with Sides() as opened:
        running = opened.start(side())
        pids = [process.pid for process in psutil.Process(running._process.pid).children(recursive=True)]
        assert pids

    assert not any(psutil.pid_exists(pid) for pid in (running._process.pid, *pids))


def test_a_row_that_is_left_out_starts_nothing(sides: Sides):
    assert measure(Skipped(BAR, "left out"), sides, runs=5).why == "left out"
