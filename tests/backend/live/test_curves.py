from backend.live.curves import CHART_SPAN_S, RecentChart, ThinnedCurve
from backend.live.run_memory import RunMemory
from learning_at_home.coordinator_messages import Report
from tests.backend.kit import report


def test_a_curve_stays_bounded_and_keeps_its_first_and_latest_point():
    curve = ThinnedCurve(max_points=10)
    for step in range(1_000):
        curve.add(step, float(step))

    points = curve.all_points()
    assert len(points) <= 11
    assert points[0] == (0, 0.0)
    assert points[-1] == (999, 999.0)
    assert [step for step, _ in points] == sorted({step for step, _ in points})


def test_what_is_taken_rebuilds_the_curve_even_after_thinning():
    curve = ThinnedCurve(max_points=8)
    stored: dict[int, float] = {}
    for step in range(100):
        curve.add(step, float(step))
        if step % 7 == 0:
            rewritten, unsaved = curve.take_unsaved()
            stored = unsaved if rewritten else stored | unsaved

    rewritten, unsaved = curve.take_unsaved()
    stored = unsaved if rewritten else stored | unsaved
    assert stored == curve.points


def test_a_restored_curve_has_nothing_to_save():
    curve = ThinnedCurve()
    curve.restore([(1, 0.5), (2, 0.4)])

    assert curve.take_unsaved() == (False, {})
    assert curve.all_points() == [(1, 0.5), (2, 0.4)]


def test_an_earlier_step_belongs_to_no_curve():
    curve = ThinnedCurve()
    curve.add(5, 1.0)
    curve.add(4, 9.0)

    assert curve.all_points() == [(5, 1.0)]


def test_a_chart_forgets_what_is_older_than_its_span():
    chart = RecentChart(("a",), "ms")
    chart.add(1_000.0, {"a": 1.0})
    chart.add(1_000.0 + CHART_SPAN_S + 1, {"a": None})

    assert chart.columns() == ((1_000.0 + CHART_SPAN_S + 1,), {"a": (None,)})


def run_with(*steps: int) -> RunMemory:
    run = RunMemory("t", "trainer", "first", started_s=0.0, last_heard_s=0.0)
    for step in steps:
        run.hears(report(step, loss=float(step)), now=float(step))
    return run


def test_a_run_that_begins_again_under_its_name_has_a_new_curve():
    run = run_with(10, 20, 30, 1, 2)

    assert run.step == 2
    assert run.curves["loss"].all_points() == [(1, 1.0), (2, 2.0)]
    assert run.curves["loss"].take_unsaved() == (True, {1: 1.0, 2: 2.0})


def test_a_report_that_comes_a_little_late_changes_no_curve():
    run = run_with(10, 20, 19)

    assert run.step == 20
    assert run.curves["loss"].all_points() == [(10, 10.0), (20, 20.0)]


def test_losses_are_drawn_and_without_any_what_else_is_reported():
    run = RunMemory("t", "trainer", "first", started_s=0.0, last_heard_s=0.0)
    run.hears(report(1, accuracy=0.5, rows_per_s=9.0, a=1.0, b=1.0, c=1.0), now=1.0)
    assert run.drawn_lines() == ["accuracy", "rows_per_s", "a", "b"]

    run.hears(report(2, accuracy=0.5, loss=2.0, test_loss=2.1), now=2.0)
    assert run.drawn_lines() == ["loss", "test_loss"]


def test_a_run_has_a_bounded_number_of_metrics():
    run = RunMemory("t", "trainer", "first", started_s=0.0, last_heard_s=0.0)
    for number in range(100):
        run.hears(Report(run="first", step=number, metrics={f"metric{number}": 1.0}), now=0.0)

    assert len(run.curves) == len(run.metrics) == 32
