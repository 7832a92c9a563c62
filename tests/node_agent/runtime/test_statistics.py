"""What a node counts."""

from node_agent.runtime.statistics import Statistics


def test_work_is_counted_per_expert():
    statistics = Statistics(["a", "b"])
    statistics.answered("a", "forward", rows=3, flop=30.0, latency_s=0.01, updates=0, now=1.0)
    statistics.answered("a", "backward", rows=2, flop=60.0, latency_s=0.01, updates=1, now=2.0)
    statistics.failed("a")
    statistics.refuse()

    first, second = statistics.snapshot(now=5.0)

    assert (first.rows_forward, first.rows_backward, first.updates) == (3, 2, 1)
    assert (first.calls, first.failures, first.flop, first.update_age_s) == (3, 1, 90.0, 3.0)
    assert (second.calls, second.p50_ms, second.update_age_s) == (0, None, None)
    assert (statistics.rows, statistics.refused) == (5, 1)
