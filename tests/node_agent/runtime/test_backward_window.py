"""A backward is applied once: verdicts, clocks, bounds, floods, and two machines against models."""

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from learning_at_home.clock import CLOCK_SKEW_TOLERATED_S
from learning_at_home.errors import StaleRequest
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import MAX_WORK_PER_REQUEST, Failure, Reply, TensorSpec
from node_agent.runtime.backward_window import (
    ANSWER_OVERHEAD_BYTES,
    NEW,
    PENDING,
    BackwardWindow,
    KeptAnswer,
    WindowLimits,
)

STARTED = 1_000.0  # monotonic
WALL_MS = 1_800_000_000_000  # at STARTED
SKEW_MS = round(CLOCK_SKEW_TOLERATED_S * 1000)
ALICE, BOB, CAROL = (name.encode().ljust(32) for name in ("alice", "bob", "carol"))
SECRET = b"a secret of tests"


def wall_ms(now: float) -> int:
    return WALL_MS + round((now - STARTED) * 1000)


def ticket(
    call_id: int = 1,
    caller: bytes = ALICE,
    *,
    now: float = STARTED + 60,
    issued_ms: int | None = None,
    route: bytes = b"first",
    timeout_s: float = 10.0,
) -> Ticket:
    return Ticket(caller, call_id, wall_ms(now) if issued_ms is None else issued_ms, now + timeout_s, now, route)


def again(first: Ticket, *, now: float | None = None, route: bytes = b"second") -> Ticket:
    """The same work, sent once more."""
    return ticket(first.call_id, first.caller, now=now or first.received + 1, issued_ms=first.issued_ms, route=route)


def admit(window: BackwardWindow, asked: Ticket, *, waited_ms: int = 0, wall: int | None = None) -> object:
    return window.admit(asked, waited_ms, wall_ms(asked.received) if wall is None else wall)


def retry(window: BackwardWindow, first: Ticket, *, now: float | None = None, route: bytes = b"second") -> object:
    asked = again(first, now=now, route=route)
    return admit(window, asked, waited_ms=round((asked.received - first.received) * 1000))


def reply(call_id: int = 1) -> Reply:
    return Reply(call_id, (TensorSpec("float32", (1, 2)),), 10, 20, 1, 0.0)


def window_of(**limits: float) -> BackwardWindow:
    return BackwardWindow(STARTED, WindowLimits(**limits), bucket_secret=SECRET)  # type: ignore[arg-type]


def remember(window: BackwardWindow, asked: Ticket, num_bytes: int = 8) -> Ticket:
    """Admit and answer it."""
    assert admit(window, asked) is NEW
    window.answered(asked, reply(asked.call_id), [bytes(num_bytes)], asked.received)
    return asked


@pytest.fixture
def window() -> BackwardWindow:
    return BackwardWindow(STARTED, bucket_secret=SECRET)


# ---- what a retry gets


def test_a_retry_of_what_still_waits_is_not_computed_and_its_newest_ticket_gets_the_answer(window: BackwardWindow):
    first = ticket()
    assert admit(window, first) is NEW
    assert retry(window, first, route=b"second") is PENDING
    assert retry(window, first, route=b"third") is PENDING

    to = window.answered(first, reply(), [b"12345678"], first.received + 2)

    assert to.routing_id == b"third"
    assert window.repeated == 2


def test_a_retry_of_what_was_answered_gets_the_same_answer(window: BackwardWindow):
    first = ticket()
    admit(window, first)
    message = reply()
    frames: list[memoryview | bytes] = [b"12345678", memoryview(b"rest")]
    assert window.answered(first, message, frames, first.received) is first

    for _ in range(2):
        kept = retry(window, first)
        assert isinstance(kept, KeptAnswer)
        assert kept.message is message
        assert kept.frames == frames


def test_a_failure_of_the_computation_is_an_answer_too(window: BackwardWindow):
    """It may have come after the step."""
    first = ticket()
    admit(window, first)
    failure = Failure(1, 202, "no luck")
    window.answered(first, failure, [], first.received)

    kept = retry(window, first)

    assert isinstance(kept, KeptAnswer)
    assert kept.message is failure


def test_what_was_refused_at_admission_leaves_no_trace_and_may_come_again(window: BackwardWindow):
    first = ticket()
    admit(window, first)

    assert window.forget(first) is first

    assert (window.num_ids, window.num_callers) == (0, 0)
    assert retry(window, first) is NEW


def test_a_backward_dropped_from_the_queue_may_come_again_and_its_newest_ticket_is_told(window: BackwardWindow):
    first, later = ticket(1), ticket(2)
    admit(window, first)
    admit(window, later)
    retry(window, first, route=b"second")

    assert window.forget(first).routing_id == b"second"

    assert retry(window, first) is NEW
    assert retry(window, later) is PENDING


def test_an_answered_one_cannot_be_forgotten(window: BackwardWindow):
    first = remember(window, ticket())

    window.forget(first)

    assert isinstance(retry(window, first), KeptAnswer)


def test_ids_belong_to_their_caller_and_their_time(window: BackwardWindow):
    remember(window, ticket(1, ALICE))

    assert admit(window, ticket(1, BOB)) is NEW
    assert admit(window, ticket(2, ALICE)) is NEW
    assert admit(window, ticket(1, ALICE, now=STARTED + 60.001)) is NEW


def test_frames_that_share_their_memory_are_kept_as_copies(window: BackwardWindow):
    first, batch = ticket(), bytearray(b"abcdefgh")
    admit(window, first)
    window.answered(first, reply(), [memoryview(batch)[:4]], first.received, shared=True)
    batch[:] = b"overwrit"

    kept = retry(window, first)

    assert isinstance(kept, KeptAnswer)
    assert kept.frames == [b"abcd"]


def test_an_answer_is_kept_as_long_as_somebody_may_wait_for_it_and_its_id_longer(window: BackwardWindow):
    patient = remember(window, ticket(1, now=STARTED + 60, timeout_s=50.0))
    usual = remember(window, ticket(2, now=STARTED + 60))

    window.sweep(wall_ms(STARTED + 91), STARTED + 91)
    assert isinstance(retry(window, patient, now=STARTED + 91), KeptAnswer)

    window.sweep(wall_ms(STARTED + 111), STARTED + 111)
    assert window.answer_bytes == 0
    for asked in (patient, usual):
        with pytest.raises(StaleRequest, match="computed before and its answer is no longer kept"):
            retry(window, asked, now=STARTED + 111)


def test_an_answer_too_large_to_keep_is_known_to_have_been_given():
    window = window_of(answer_bytes=ANSWER_OVERHEAD_BYTES + 10)
    small = remember(window, ticket(1), num_bytes=10)
    large = remember(window, ticket(2), num_bytes=11)

    assert isinstance(retry(window, small), KeptAnswer)
    with pytest.raises(StaleRequest, match="do not send it again"):
        retry(window, large)


# ---- what is refused by its time


@pytest.mark.parametrize(
    "issued_s, waited_s, restored, words",
    [
        (60.0, 0.0, False, None),
        (70.0, 0.0, False, None),  # its clock is 10 s ahead
        (70.001, 0.0, False, "10.0 s in the future"),
        (3_600.0, 0.0, False, "3540.0 s in the future by this node's clock; one of the two clocks is wrong"),
        (0.0, 0.0, False, None),
        (-0.001, 0.0, False, "started 60.0 s ago"),
        (5.0, 59.999, False, None),
        (5.0, 60.0, False, "started 60.0 s ago and may have applied it"),  # whatever its clock says
        (5.0, 0.0, True, None),  # a first attempt cannot have been applied before
        (5.0, 55.0, True, "started 60.0 s ago"),  # its clock may be 10 s ahead
        (9.999, 50.0, True, "started 60.0 s ago"),
        (10.0, 50.0, True, None),
    ],
)
def test_a_backward_that_may_have_been_applied_before_is_refused(
    issued_s: float, waited_s: float, restored: bool, words: str | None
):
    window = BackwardWindow(STARTED, restored=restored)
    asked = ticket(issued_ms=wall_ms(STARTED + issued_s))

    if words is None:
        assert admit(window, asked, waited_ms=round(waited_s * 1000)) is NEW
        return
    with pytest.raises(StaleRequest, match="was not applied now") as refusal:
        admit(window, asked, waited_ms=round(waited_s * 1000))
    assert words in refusal.value.message
    assert (window.num_ids, window.num_callers, window.refused) == (0, 0, 1)


@pytest.mark.parametrize("age_s, taken", [(119.999, True), (120.0, False), (4_000.0, False)])
def test_a_backward_from_before_the_window_is_refused(age_s: float, taken: bool):
    window, now = BackwardWindow(STARTED), STARTED + 5_000
    asked = ticket(now=now, issued_ms=wall_ms(now - age_s))

    if taken:
        assert admit(window, asked) is NEW
    else:
        with pytest.raises(StaleRequest, match=f"{age_s:.1f} s old by this node's clock, .* remembers 120 s"):
            admit(window, asked)


def test_a_clock_set_back_makes_nothing_come_twice(window: BackwardWindow):
    first = remember(window, ticket(now=STARTED + 200))
    asked = again(first, now=STARTED + 201)
    hour_ms = 3_600_000

    assert isinstance(admit(window, asked, waited_ms=1_000, wall=wall_ms(asked.received) - hour_ms), KeptAnswer)
    with pytest.raises(StaleRequest, match="in the future"):
        admit(window, ticket(2, now=STARTED + 201), wall=wall_ms(STARTED + 201) - hour_ms)
    assert admit(window, ticket(2, now=STARTED + 202)) is NEW


def test_a_clock_that_runs_away_and_comes_back_costs_what_it_made_forget_and_no_more(window: BackwardWindow):
    first = remember(window, ticket(now=STARTED + 200))
    window.sweep(wall_ms(STARTED + 201) + 3_600_000, STARTED + 201)
    assert window.num_ids == 0

    with pytest.raises(StaleRequest, match="no longer knows"):
        retry(window, first, now=STARTED + 202)
    assert admit(window, ticket(2, now=STARTED + 202)) is NEW


def test_a_node_whose_clock_was_set_right_after_its_start_serves():
    """A machine without a battery for its clock starts in 1970."""
    window = BackwardWindow(STARTED)
    with pytest.raises(StaleRequest, match="in the future"):
        admit(window, ticket(now=STARTED + 5), wall=5_000)
    assert admit(window, ticket(now=STARTED + 5, issued_ms=5_000), wall=5_000) is NEW

    assert admit(window, ticket(now=STARTED + 6)) is NEW


def test_ids_are_forgotten_after_the_window_and_refused_from_then_on(window: BackwardWindow):
    first = remember(window, ticket(now=STARTED + 60))
    for call_id in range(2, 40):  # others keep the caller known, and their admission tidies up
        remember(window, ticket(call_id, now=STARTED + 180.5))

    assert window.num_ids == 38
    with pytest.raises(StaleRequest):
        admit(window, again(first, now=STARTED + 180.6), wall=wall_ms(STARTED + 100))


def test_an_idle_window_gives_everything_back(window: BackwardWindow):
    for call_id in range(1_000):
        remember(window, ticket(call_id, [ALICE, BOB, CAROL][call_id % 3]))

    window.sweep(wall_ms(STARTED + 181), STARTED + 181)

    assert (window.num_ids, window.num_callers, window.answer_bytes) == (0, 0, 0)


# ---- bounds, and who pays for them


def test_a_caller_over_its_bound_pays_with_its_own_oldest_ids():
    window = window_of(ids_per_caller=4)
    of_bob = remember(window, ticket(1, BOB))
    tickets = [remember(window, ticket(call_id, now=STARTED + 60 + call_id)) for call_id in range(10)]

    assert window.num_ids == 5
    assert isinstance(retry(window, of_bob), KeptAnswer)
    for kept in tickets[-4:]:
        assert isinstance(retry(window, kept, now=STARTED + 75), KeptAnswer)
    for gone in tickets[:-4]:
        with pytest.raises(StaleRequest, match="no longer knows which"):
            retry(window, gone, now=STARTED + 75)


def test_what_was_dropped_unapplied_raises_no_floor():
    window, now = window_of(ids_per_caller=2), STARTED + 60
    ahead = ticket(1, now=now, issued_ms=wall_ms(now) + SKEW_MS)
    admit(window, ahead)
    admit(window, ticket(2, now=now))
    window.forget(ahead)

    for call_id in range(3, 6):
        assert admit(window, ticket(call_id, now=now + call_id)) is NEW


def test_when_all_ids_are_too_many_the_greedy_pay_themselves():
    window = window_of(ids=8, ids_granted=2)
    of_bob = [remember(window, ticket(call_id, BOB)) for call_id in range(3)]
    for call_id in range(100):
        remember(window, ticket(call_id, ALICE, now=STARTED + 61 + call_id / 1_000))

    assert window.num_ids == 8
    for asked in of_bob:
        assert isinstance(retry(window, asked, now=STARTED + 62), KeptAnswer)


def test_when_all_ids_are_too_many_and_nobody_is_greedy_the_silent_pay():
    window = window_of(ids=8, ids_granted=2)
    callers = [f"caller {number}".encode() for number in range(4)]
    tickets = [
        remember(window, ticket(call_id, caller, now=STARTED + 60 + number))
        for number, caller in enumerate(callers)
        for call_id in range(2)
    ]
    remember(window, ticket(9, callers[0], now=STARTED + 65))  # over its share: forgets its own first
    remember(window, ticket(1, b"newcomer", now=STARTED + 66))  # under its share: the longest silent one pays

    assert window.num_ids == 8
    with pytest.raises(StaleRequest):
        retry(window, tickets[0], now=STARTED + 67)
    with pytest.raises(StaleRequest):
        retry(window, tickets[2], now=STARTED + 67)
    for asked in (tickets[1], *tickets[3:]):
        assert isinstance(retry(window, asked, now=STARTED + 67), KeptAnswer)


def test_the_largest_message_fits_whatever_others_hold():
    """All of its work was issued in one millisecond, so it must not push out its own."""
    window = window_of(callers=1_024, ids=4_096)
    for number in range(1_024):
        for call_id in range(4):
            admit(window, ticket(call_id, str(number).encode()))
    assert (window.num_ids, window.num_callers) == (4_096, 1_024)

    for call_id in range(MAX_WORK_PER_REQUEST):
        assert admit(window, ticket(call_id, ALICE, now=STARTED + 61)) is NEW


def test_refusals_of_strangers_push_out_one_caller_at_most():
    """Work that does not fit an expert is admitted here before its shape is looked at."""
    window = window_of(callers=4)
    known = [remember(window, ticket(1, name.encode(), now=STARTED + 60)) for name in ("a", "b", "c", "d")]
    for number in range(1_000):
        stranger = ticket(1, f"stranger {number}".encode(), now=STARTED + 61)
        assert admit(window, stranger) is NEW
        window.forget(stranger)

    assert window.num_callers == 3
    for asked in known[1:]:
        assert isinstance(retry(window, asked, now=STARTED + 62), KeptAnswer)


def test_an_active_caller_outlives_a_flood_of_other_keys():
    window, now = window_of(callers=64, ids=256, buckets=1_024), STARTED + 60
    for second in range(50):
        mine = remember(window, ticket(second, ALICE, now=now + second))
        for number in range(60):
            flood = ticket(1, f"{second} {number}".encode(), now=now + second + 0.5)
            flood = ticket(1, flood.caller, now=flood.received, issued_ms=flood.issued_ms + SKEW_MS)
            try:
                remember(window, flood)
            except StaleRequest:
                continue  # its bucket was taken by others of the flood

        assert isinstance(retry(window, mine, now=now + second + 0.9), KeptAnswer)


def test_newcomers_are_hardly_refused_during_a_flood_of_other_keys_and_not_at_all_after_it():
    """Each forgotten key shuts one bucket, for 10 s at most: what callers' clocks may be ahead."""
    window, now = window_of(callers=64, buckets=4_096), STARTED + 60
    for number in range(400):
        flood = ticket(1, f"flood {number}".encode(), now=now, issued_ms=wall_ms(now) + SKEW_MS)
        try:
            remember(window, flood)
        except StaleRequest:
            continue

    def refused_of_1000(at: float) -> int:
        refused = 0
        for number in range(1_000):
            newcomer = ticket(1, f"newcomer {number}".encode(), now=at)
            try:
                admit(window, newcomer)
            except StaleRequest:
                refused += 1
            else:
                window.forget(newcomer)
        return refused

    assert 0 < refused_of_1000(now + 1) < 200  # about 340 of 4,096 buckets
    assert refused_of_1000(now + 10.001) == 0


def test_a_forgotten_caller_is_not_taken_twice_and_can_go_on():
    window = window_of(callers=2)
    first = remember(window, ticket(1, ALICE, now=STARTED + 60))
    remember(window, ticket(1, BOB, now=STARTED + 61))
    remember(window, ticket(1, CAROL, now=STARTED + 62))
    assert window.num_callers == 2

    for call_id in (2, 3):  # as a stranger, and as one who is known again
        with pytest.raises(StaleRequest, match="no longer knows"):
            retry(window, first, now=STARTED + 61 + call_id)
        assert admit(window, ticket(call_id, ALICE, now=STARTED + 61 + call_id)) is NEW


def test_an_answer_to_what_was_forgotten_while_it_was_computed_goes_to_the_first_ticket():
    window = window_of(callers=1)
    first = ticket(1, ALICE, now=STARTED + 60)
    admit(window, first)
    remember(window, ticket(1, BOB, now=STARTED + 61))

    assert window.answered(first, reply(), [b"12345678"], STARTED + 62) is first
    assert window.forget(first) is first
    with pytest.raises(StaleRequest):
        retry(window, first, now=STARTED + 63)


def test_who_holds_most_of_the_answers_gives_up_its_oldest_and_the_others_keep_theirs():
    window = window_of(answer_bytes=64 * 1_024)
    of_bob = [remember(window, ticket(n, BOB), num_bytes=0) for n in range(10)]
    of_carol = [remember(window, ticket(n, CAROL), num_bytes=1_024) for n in range(5)]
    of_alice, held = [], []
    for n in range(200):
        of_alice.append(remember(window, ticket(n, ALICE, now=STARTED + 61), num_bytes=2_048))
        held.append(window.answer_bytes)

    for asked in (*of_bob, *of_carol, *of_alice[-8:]):
        assert isinstance(retry(window, asked, now=STARTED + 62), KeptAnswer)
    with pytest.raises(StaleRequest, match="no longer kept"):
        retry(window, of_alice[0], now=STARTED + 62)
    assert max(held) <= 64 * 1_024
    assert min(held[20:]) > 57 * 1_024  # a sixteenth is made free at once


def test_two_threads_may_use_it_at_once():
    window = window_of(ids=200, answer_bytes=20_000)
    admitted: SimpleQueue[Ticket | None] = SimpleQueue()

    def answer_all() -> int:
        answered = 0
        while asked := admitted.get():
            window.answered(asked, reply(), [b"12345678"], asked.received)
            answered += 1
        return answered

    with ThreadPoolExecutor(1) as device_thread:
        answered = device_thread.submit(answer_all)
        try:
            for number in range(4_000):
                asked = ticket(number, [ALICE, BOB][number % 2], now=STARTED + 60 + number / 1_000)
                assert admit(window, asked) is NEW
                admitted.put(asked)
        finally:
            admitted.put(None)

    assert answered.result() == 4_000
    audit(window)


# ---- against models


def audit(window: BackwardWindow) -> None:
    """Every bound holds and every count is right."""
    limits, callers = window.limits, window._callers.values()
    assert window.num_callers <= limits.callers
    assert window.num_ids == sum(len(caller.order) for caller in callers) <= limits.ids
    assert window.answer_bytes == sum(caller.answer_bytes for caller in callers) <= limits.answer_bytes
    for caller in callers:
        assert 0 < len(caller.order) <= limits.ids_per_caller
        assert set(caller.works) <= set(caller.order)
        kept = [state for state in caller.works.values() if isinstance(state, KeptAnswer)]
        assert caller.answer_bytes == sum(state.size_bytes for state in kept)
        assert len(kept) <= len(caller.answers) <= 2 * limits.ids_per_caller
        assert all(issued_ms <= caller.newest_ms for issued_ms, _ in caller.works)


Id = tuple[bytes, int, int]


def id_of(asked: Ticket) -> Id:
    return asked.caller, asked.issued_ms, asked.call_id


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([ALICE, BOB, CAROL, b"dave", b"erin"]),
        st.integers(1, 4),  # pieces of work
        st.sampled_from([0, 0, 0, 2_000, 29_000, -SKEW_MS]),  # how late it comes
        st.booleans(),  # whether this caller then sends all of its work again
    ),
    min_size=3,
    max_size=8,
)


class TightWindow(RuleBasedStateMachine):
    """Tiny bounds, wild clocks, many keys: whatever comes, nothing is NEW twice, and answers are the right ones."""

    def __init__(self) -> None:
        super().__init__()
        self.window = window_of(
            length_s=30, callers=3, ids=10, ids_per_caller=6, ids_granted=3, answer_bytes=8_000, buckets=16
        )
        self.now = STARTED + 20
        self.clock_ms = 0  # by how much the node's clock is wrong
        self.issued: list[Ticket] = []
        self.queue: list[Ticket] = []
        self.taken: set[Id] = set()  # NEW, and not dropped
        self.answers: dict[Id, Reply] = {}
        self.newest: dict[Id, Ticket] = {}

    def ask(self, asked: Ticket, waited_ms: int) -> None:
        window, asked_id = self.window, id_of(asked)
        before = (window.num_ids, window.num_callers, window.answer_bytes)
        try:
            verdict = window.admit(asked, waited_ms, wall_ms(self.now) + self.clock_ms)
        except StaleRequest:
            assert (window.num_ids, window.num_callers, window.answer_bytes) == before
            return
        if isinstance(verdict, KeptAnswer):
            assert verdict.message is self.answers[asked_id]
            return
        self.newest[asked_id] = asked
        if verdict is NEW:
            assert asked_id not in self.taken
            self.taken.add(asked_id)
            self.queue.append(asked)
        else:
            assert asked_id in self.taken
            assert asked_id not in self.answers

    @initialize(messages=MESSAGES)
    def begin(self, messages: list[tuple[bytes, int, int, bool]]) -> None:
        self.send(messages)

    @rule(messages=MESSAGES)
    def send(self, messages: list[tuple[bytes, int, int, bool]]) -> None:
        for caller, num_work, late_ms, all_again in messages:
            self.now += 0.01
            for _ in range(num_work):
                call_id = len(self.issued)
                self.issued.append(ticket(call_id, caller, now=self.now, issued_ms=wall_ms(self.now) - late_ms))
                self.ask(self.issued[-1], 0)

            if all_again:
                for first in [first for first in self.issued if first.caller == caller]:
                    self.send_again(first)

    @rule(last=st.sampled_from([1, 5, 100]))
    def send_all_again(self, last: int) -> None:
        for first in self.issued[-last:]:
            self.send_again(first)

    def send_again(self, first: Ticket) -> None:
        self.now += 0.001
        asked = again(first, now=self.now, route=b"later")
        self.ask(asked, max(1, round((self.now - first.received) * 1000)))

    @precondition(lambda self: self.queue)
    @rule(num=st.integers(1, 8), num_bytes=st.sampled_from([0, 500, 3_000, 9_000]))
    def compute(self, num: int, num_bytes: int) -> None:
        batch, self.queue = self.queue[:num], self.queue[num:]
        for asked in batch:
            self.answers[id_of(asked)] = message = reply(asked.call_id)
            to = self.window.answered(asked, message, [bytes(num_bytes)], self.now)
            assert to in (asked, self.newest[id_of(asked)])

    @precondition(lambda self: self.queue)
    @rule(num=st.integers(1, 3), newest=st.booleans())
    def drop(self, num: int, newest: bool) -> None:
        dropped = self.queue[-num:] if newest else self.queue[:num]
        self.queue = [asked for asked in self.queue if asked not in dropped]
        for asked in dropped:
            assert self.window.forget(asked) in (asked, self.newest[id_of(asked)])
            self.taken.discard(id_of(asked))

    @rule(seconds=st.sampled_from([0.5, 9.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(clock_ms=st.sampled_from([0, 0, -5_000, 5_000, -60_000, 60_000, 3_600_000]))
    def set_the_clock(self, clock_ms: int) -> None:
        self.clock_ms = clock_ms

    @rule()
    def sweep(self) -> None:
        self.window.sweep(wall_ms(self.now) + self.clock_ms, self.now)

    @invariant()
    def bounds_hold(self) -> None:
        audit(self.window)


TestTightWindow = pytest.mark.slow(TightWindow.TestCase)
TestTightWindow.settings = settings(max_examples=100, stateful_step_count=25)


CALLS = st.lists(
    st.tuples(
        st.sampled_from([ALICE, BOB]),
        st.sampled_from([-SKEW_MS, -2_000, 0, 2_000, SKEW_MS]),  # by how much the caller's clock is ahead
        st.booleans(),  # whether it arrives at once
    ),
    min_size=2,
    max_size=6,
)


class RestartingNode(RuleBasedStateMachine):
    """Callers whose clocks are up to 10 s wrong try again across restarts of a node that keeps its weights; attempts
    lie in buffers for any time. A backward is applied once, and what comes from a sound time is not refused."""

    def __init__(self) -> None:
        super().__init__()
        self.now = STARTED + 20
        self.issued: list[Ticket] = []
        self.under_way: dict[Id, tuple[Ticket, int]] = {}  # the last attempt, and how long it had waited
        self.applied: set[Id] = set()
        self.start()

    def start(self) -> None:
        self.started = self.now
        self.window = BackwardWindow(self.now, restored=True, bucket_secret=SECRET)
        self.known: set[Id] = set()

    def arrive(self, first: Ticket, waited_ms: int) -> None:
        asked, asked_id = again(first, now=self.now), id_of(first)
        try:
            verdict = admit(self.window, asked, waited_ms=waited_ms)
        except StaleRequest:
            if asked_id in self.known:
                assert self.now >= first.received + self.window.limits.answer_life_s
            else:
                assert first.received <= max(self.started, self.now - 120) + 2 * CLOCK_SKEW_TOLERATED_S
            return
        assert isinstance(verdict, KeptAnswer) == (asked_id in self.known)
        if verdict is NEW:
            assert asked_id not in self.applied
            self.applied.add(asked_id)
            self.known.add(asked_id)
            self.window.answered(asked, reply(asked.call_id), [b"12345678"], self.now)

    @initialize(calls=CALLS)
    def begin(self, calls: list[tuple[bytes, int, bool]]) -> None:
        self.send(calls)

    @rule(calls=CALLS)
    def send(self, calls: list[tuple[bytes, int, bool]]) -> None:
        for caller, ahead_ms, at_once in calls:
            first = ticket(len(self.issued), caller, now=self.now, issued_ms=wall_ms(self.now) + ahead_ms)
            self.issued.append(first)
            if at_once:
                self.arrive(first, 0)
            else:
                self.under_way[id_of(first)] = first, 0

    @rule()
    def send_again(self) -> None:
        """The attempts before were lost with their connections, or have arrived."""
        for first in self.issued:
            self.under_way[id_of(first)] = first, max(1, round((self.now - first.received) * 1000))

    @precondition(lambda self: self.under_way)
    @rule(num=st.sampled_from([1, 100]))
    def let_some_arrive(self, num: int) -> None:
        for asked_id in list(self.under_way)[-num:]:
            self.arrive(*self.under_way.pop(asked_id))

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0]), with_retries=st.booleans())
    def restart(self, seconds: float, with_retries: bool) -> None:
        if with_retries:  # they find the next process
            self.send_again()
        self.now += seconds
        self.start()


TestRestartingNode = pytest.mark.slow(RestartingNode.TestCase)
TestRestartingNode.settings = settings(max_examples=60, stateful_step_count=25)
