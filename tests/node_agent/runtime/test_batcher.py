"""The queue's decisions as tables: which batch is next, what is late, when it is full."""

import pytest

from learning_at_home.errors import NodeOverloaded
from node_agent.runtime.batcher import MAX_RETRY_S, MIN_RETRY_S, Batcher, Limits, Pending


def request(name: str, uid: str = "a", operation="forward", *, rows=1, size_bytes=8, arrived=0.0, deadline=100.0):
    return Pending(uid, operation, rows, size_bytes, arrived, deadline, name)


def batches(batcher: Batcher[str], now: float = 1.0) -> list[list[str]]:
    found = []
    while batch := batcher.next_batch(now):
        found.append([r.payload for r in batch.requests])
    return found


@pytest.mark.parametrize(
    "requests,expected",
    [
        ([], []),
        ([request("1"), request("2")], [["1", "2"]]),  # one expert, one operation: together
        ([request("1"), request("2", "b"), request("3")], [["1", "3"], ["2"]]),
        ([request("1"), request("2", operation="backward")], [["1"], ["2"]]),
        (  # the lane whose first request is the oldest comes first
            [request("1", "b", arrived=0.3), request("2", "a", arrived=0.5), request("3", "c", arrived=0.1)],
            [["3"], ["1"], ["2"]],
        ),
        ([request("1", rows=6), request("2", rows=4), request("3", rows=1)], [["1", "2"], ["3"]]),
        ([request("1", rows=6), request("2", rows=5)], [["1"], ["2"]]),
        ([request("1", rows=99)], [["1"]]),  # one request is a batch, whatever its size
        ([request("1", size_bytes=60), request("2", size_bytes=60)], [["1"], ["2"]]),
        (  # the rest of a lane waits behind lanes that are older by then
            [
                request("1", rows=9, arrived=0.1),
                request("2", "b", arrived=0.2),
                request("3", rows=9, arrived=0.3),
            ],
            [["1"], ["2"], ["3"]],
        ),
    ],
)
def test_batches_are_the_oldest_requests_with_what_waits_beside_them(requests, expected):
    batcher: Batcher[str] = Batcher(Limits(batch_rows=10, batch_bytes=100))
    for entry in requests:
        batcher.add(entry)

    assert batches(batcher) == expected
    assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)


def groups(batcher: Batcher[str], group_of, now: float = 1.0) -> list[list[list[str]]]:
    found = []
    while group := batcher.next_group(now, group_of):
        found.append([[r.payload for r in batch.requests] for batch in group])
    return found


def by_first_letter(uid: str, operation) -> str | None:
    """Experts a1, a2, ... are a group; those of x are computed alone."""
    return None if uid[0] == "x" else uid[0]


@pytest.mark.parametrize(
    "requests,expected",
    [
        ([], []),
        ([request("1", "a1")], [[["1"]]]),
        ([request("1", "a1"), request("2", "a2"), request("3", "a1")], [[["1", "3"], ["2"]]]),
        ([request("1", "a1"), request("2", "b1"), request("3", "a2")], [[["1"], ["3"]], [["2"]]]),
        ([request("1", "x1"), request("2", "x2")], [[["1"]], [["2"]]]),
        ([request("1", "a1"), request("2", "a2", "backward")], [[["1"]], [["2"]]]),
        (  # the oldest lanes first
            [request("1", "a1", arrived=0.3), request("2", "a2", arrived=0.5), request("3", "a3", arrived=0.1)],
            [[["3"], ["1"], ["2"]]],
        ),
        (  # within the limits of a group; what does not fit is the next group's, with what fits beside it
            [request("1", "a1", rows=8), request("2", "a2", rows=8), request("3", "a3", rows=4)],
            [[["1"], ["3"]], [["2"]]],
        ),
        (  # within the limits of each batch
            [request("1", "a1", rows=6), request("2", "a1", rows=6), request("3", "a2", rows=1)],
            [[["1"], ["3"]], [["2"]]],
        ),
        ([request("1", "a1", size_bytes=150), request("2", "a2", size_bytes=60)], [[["1"]], [["2"]]]),
        ([request("1", "a1", rows=99), request("2", "a2")], [[["1"]], [["2"]]]),
    ],
)
def test_a_group_is_the_oldest_lane_with_the_others_of_its_group(requests, expected):
    batcher: Batcher[str] = Batcher(Limits(batch_rows=10, batch_bytes=100, group_rows=12, group_bytes=200))
    for entry in requests:
        batcher.add(entry)

    assert groups(batcher, by_first_letter) == expected
    assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)


def test_groups_leave_the_lanes_of_others_in_their_order():
    batcher: Batcher[str] = Batcher(Limits(batch_rows=10))
    for number, uid in enumerate(["a1", "b1", "a2", "x1", "b2", "a1", "x2"]):
        batcher.add(request(str(number), uid, arrived=number / 10))

    assert groups(batcher, by_first_letter) == [[["0", "5"], ["2"]], [["1"], ["4"]], [["3"]], [["6"]]]


def test_late_requests_of_a_group_are_told_from_the_others():
    batcher: Batcher[str] = Batcher(Limits())
    for entry in (request("1", "a1"), request("late", "a2", deadline=2.0), request("2", "a2"), request("3", "a3")):
        batcher.add(entry)

    found = batcher.next_group(2.0, by_first_letter)

    assert [[r.payload for r in batch.requests] for batch in found] == [["1"], ["2"], ["3"]]
    assert [[r.payload for r in batch.late] for batch in found] == [[], ["late"], []]
    assert batcher.queued_rows == 0


def test_what_is_past_its_deadline_is_not_computed():
    batcher: Batcher[str] = Batcher(Limits())
    for entry in (request("late", deadline=2.0), request("in time", deadline=3.0), request("late too", deadline=1.5)):
        batcher.add(entry)

    batch = batcher.next_batch(now=2.0)

    assert batch is not None
    assert [r.payload for r in batch.requests] == ["in time"]
    assert [r.payload for r in batch.late] == ["late", "late too"]
    assert batcher.queued_rows == 0


@pytest.mark.parametrize("deadline, computed, late", [(2.0, [], ["1"]), (2.1, ["1"], [])])
def test_one_that_waits_alone_is_computed_unless_it_is_late(deadline, computed, late):
    batcher: Batcher[str] = Batcher(Limits())
    batcher.add(request("1", deadline=deadline))

    batch = batcher.next_batch(now=2.0)

    assert batch is not None
    assert [r.payload for r in batch.requests] == computed
    assert [r.payload for r in batch.late] == late
    assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
    assert batcher.next_batch(now=2.0) is None


def test_one_that_comes_while_others_wait_takes_its_place_among_them():
    batcher: Batcher[str] = Batcher(Limits())
    for entry in (request("1", "a"), request("2", "b", arrived=0.2), request("3", "c", arrived=0.3)):
        batcher.add(entry)
    first = batcher.next_batch(1.0)
    batcher.add(request("4", "b", arrived=0.4))

    assert first is not None
    assert [r.payload for r in first.requests] == ["1"]
    assert batches(batcher) == [["2", "4"], ["3"]]


@pytest.mark.parametrize("full", [Limits(queued_rows=10), Limits(queued_bytes=80)])
def test_a_full_queue_refuses_and_stays_as_it_was(full):
    batcher: Batcher[str] = Batcher(full)
    for number in range(10):
        batcher.add(request(str(number)))

    with pytest.raises(NodeOverloaded, match="a: this node's queue is full \\(10 rows wait\\)") as refusal:
        batcher.add(request("one too many"))

    assert refusal.value.retry_after_s == MIN_RETRY_S
    assert batches(batcher) == [[str(number) for number in range(10)]]


def test_an_empty_queue_takes_a_request_of_any_size():
    batcher: Batcher[str] = Batcher(Limits(queued_rows=10))

    batcher.add(request("large", rows=99))

    assert batcher.queued_rows == 99


@pytest.mark.parametrize("seconds_per_row,retry_after_s", [(0.0001, MIN_RETRY_S), (0.1, 0.5), (10.0, MAX_RETRY_S)])
def test_the_retry_hint_follows_what_batches_took(seconds_per_row, retry_after_s):
    batcher: Batcher[str] = Batcher(Limits(queued_rows=10))
    batcher.observe(100, 100 * seconds_per_row)
    batcher.add(request("1", rows=10))

    with pytest.raises(NodeOverloaded) as refusal:
        batcher.add(request("2"))

    assert refusal.value.retry_after_s == pytest.approx(retry_after_s)
    assert batcher.wait_s() == pytest.approx(10 * seconds_per_row)


def test_late_requests_give_their_room_to_others():
    batcher: Batcher[str] = Batcher(Limits(queued_rows=3))
    for entry in (request("1", deadline=5.0), request("2", "b", deadline=9.0), request("3", deadline=7.0)):
        batcher.add(entry)

    assert batcher.drop_late(now=4.9) == []
    assert [r.payload for r in batcher.drop_late(now=7.0)] == ["1", "3"]
    batcher.add(request("4", arrived=1.0))

    assert batches(batcher, now=8.0) == [["2"], ["4"]]


def test_emptying_the_queue_returns_all_that_waited():
    batcher: Batcher[str] = Batcher(Limits())
    for entry in (request("1"), request("2", "b")):
        batcher.add(entry)

    assert [r.payload for r in batcher.drop_all()] == ["1", "2"]
    assert batcher.next_batch(1.0) is None
    assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
