"""A node with a valid key that answers wrongly: a typed error at the caller, at once, and the others' answers count.

"Wrongly" is every way that the wire allows: wrong ids, shapes, sizes, numbers, codecs, codes, twice, without end.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest
import torch
from torch import Tensor

from learning_at_home.client.dmoe import DMoE
from learning_at_home.errors import (
    CallTimeout,
    ExpertFailed,
    LearningAtHomeError,
    NodeOverloaded,
    PeerError,
    PeerUnreachable,
    UnknownExpert,
    VersionMismatch,
    WireError,
)
from learning_at_home.identity import Identity
from learning_at_home.wire.framing import encode
from learning_at_home.wire.messages import Request, TensorSpec, Work
from tests.faults.answers import DATA, FEATURES, ROWS, SPEC, failure, filled, reply, rows, says
from tests.faults.hostile_node import HostileNode, Script, welcome
from tests.learning_at_home.client.small_swarm import FROZEN, layer, twice

DEADLINE_S = 4.0
AT_ONCE_S = DEADLINE_S / 2  # well before the deadline, also on a busy machine
LATE_S = 0.5

WRONG_ANSWERS: dict[str, tuple[Script, type[LearningAtHomeError]]] = {
    "another shape": (says(lambda w: reply(w, TensorSpec("float64", (ROWS, 5))), DATA[: ROWS * 5 * 8]), WireError),
    "the shape transposed": (says(lambda w: reply(w, TensorSpec("float64", (FEATURES, ROWS))), DATA), WireError),
    "a row too few": (
        says(lambda w: reply(w, TensorSpec("float64", (2, FEATURES))), DATA[: 2 * FEATURES * 8]),
        WireError,
    ),
    "no rows": (says(lambda w: reply(w, TensorSpec("float64", (0, FEATURES)))), WireError),
    "another dtype": (
        says(lambda w: reply(w, TensorSpec("float32", (ROWS, FEATURES))), DATA[: len(DATA) // 2]),
        WireError,
    ),
    "two tensors": (says(lambda w: reply(w, SPEC, SPEC), DATA, DATA), WireError),
    "no tensor": (says(lambda w: reply(w, tensors=[])), WireError),
    "terabytes announced": (says(lambda w: reply(w, TensorSpec("float64", (1 << 39, 8))), DATA), WireError),
    "a frame too few": (says(reply), WireError),
    "a frame too many": (says(reply, DATA, DATA), WireError),
    "a frame too short": (says(reply, DATA[:-1]), WireError),
    "a frame too long": (says(reply, DATA + b"\0"), WireError),
    "a frame over the limit": (says(reply, bytes((1 << 20) + 4_096)), PeerUnreachable),
    "NaN": (says(reply, filled(math.nan)), ExpertFailed),
    "infinity": (says(reply, filled(-math.inf)), ExpertFailed),
    "an unknown codec": (says(lambda w: reply(w, codec="zip"), DATA), WireError),
    "no header": (says(b""), WireError),
    "a header of garbage": (says(b"\xff\x00garbage", DATA), WireError),
    "a header that is too large": (says(b"\x81\xa4type" + bytes(300_000)), WireError),
    "a header nested without end": (says(b"\x91" * 100_000), WireError),
    "a header cut short": (says(lambda w: reply(w)[:-5], DATA), WireError),
    "a request": (says(lambda w: encode(Request("test", 1, 1, (w,))), DATA), WireError),
    "a key too many": (says(lambda w: reply(w, extra=1), DATA), WireError),
    "a boolean for an id": (says(lambda w: reply(w, call_id=True), DATA), WireError),
    "a text for an id": (says(lambda w: reply(w, call_id=str(w.call_id)), DATA), WireError),
    "negative times": (says(lambda w: reply(w, queued_us=-1), DATA), WireError),
    "a load that is no number": (says(lambda w: reply(w, load_ms=math.nan), DATA), WireError),
    "a failure without a code": (says(lambda w: failure(w, code=None)), WireError),
    "a failure of an unknown code": (says(lambda w: failure(w, code=999)), PeerError),
    "a failure of a negative code": (says(lambda w: failure(w, code=-202)), PeerError),
    "a failure of a huge code": (says(lambda w: failure(w, code=(1 << 63) - 1)), PeerError),
    "a failure of code 501": (says(lambda w: failure(w, code=501)), PeerError),
    "a failure of everything": (says(lambda w: failure(w, call_id=None, code=301)), WireError),
}
SILENT_ANSWERS: dict[str, Script] = {
    "an unknown id": says(lambda w: reply(w, call_id=w.call_id + 10_000), DATA),
    "a negative id": says(lambda w: reply(w, call_id=-w.call_id), DATA),
    "another failure": says(lambda w: failure(w, call_id=w.call_id + 10_000)),
    "nothing": lambda work, frames: [],
}


def honest(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
    """The last tensor as it came: the identity, forward and backward."""
    yield [reply(work, work.tensors[-1]), *frames[-1:]]


def only(operation: str, script: Script) -> Script:
    return lambda work, frames: (script if work.operation == operation else honest)(work, frames)


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("script, error", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_wrong_answer_is_a_typed_error_at_once(small_swarm, hostile, script, error, operation):
    swarm = small_swarm(layer((1,), deadline_s=DEADLINE_S))
    mallory = hostile(swarm, [0], only(operation, script))
    expert = swarm.swarm.expert("ffn0.0")
    started = time.monotonic()

    with pytest.raises(error, match=r"ffn0\.0") as raised:
        expert(rows().requires_grad_()).sum().backward()

    assert time.monotonic() - started < AT_ONCE_S
    assert raised.value.peer == mallory.identity.name
    assert len(str(raised.value)) < 3_000
    assert mallory.seen[-1].operation == operation
    assert len(mallory.seen) <= 4, "once, or once more when the connection was lost"


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("script", SILENT_ANSWERS.values(), ids=SILENT_ANSWERS.keys())
def test_an_answer_to_nothing_that_was_asked_ends_at_the_deadline(small_swarm, hostile, script, operation):
    swarm = small_swarm(layer((1,), deadline_s=0.3))
    mallory = hostile(swarm, [0], only(operation, script))
    expert = swarm.swarm.expert("ffn0.0")
    started = time.monotonic()

    with pytest.raises(CallTimeout, match=r"ffn0\.0") as raised:
        expert(rows().requires_grad_()).sum().backward()

    assert time.monotonic() - started < 2 * 0.3 + LATE_S
    assert raised.value.peer == mallory.identity.name


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    "script",
    [*(script for script, _ in WRONG_ANSWERS.values()), *SILENT_ANSWERS.values()],
    ids=[*WRONG_ANSWERS, *SILENT_ANSWERS],
)
def test_a_layer_goes_on_without_the_node_that_answers_wrongly(small_swarm, hostile, script, operation):
    """Both experts are chosen for every row; only bob's answers count."""
    grace_s = 0.2 if operation == "forward" else 1.0  # the second: on a busy machine both answer forward
    swarm = small_swarm(layer((2,), optimizer=FROZEN, deadline_s=DEADLINE_S, grace_s=grace_s))
    hostile(swarm, [0], only(operation, script))
    swarm.add_wilful([1], twice)
    dmoe = DMoE(swarm.swarm, "ffn0", 2)
    x = rows().requires_grad_()
    local_x = x.detach().clone().requires_grad_()
    weights = dmoe.gate.line_scores(local_x).softmax(dim=1)
    started = time.monotonic()

    y = dmoe(x)
    y.sum().backward()

    assert time.monotonic() - started < AT_ONCE_S
    if operation == "forward":
        expected = 2 * local_x
    else:  # her answer counts, her gradient is left out
        expected = weights[:, :1] * local_x.detach() + weights[:, 1:] * 2 * local_x
    expected.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, local_x.grad)
    assert swarm.swarm.stats().failures == 1


def test_the_second_of_two_answers_is_dropped_and_counted(small_swarm, hostile):
    swarm = small_swarm(layer((1,), optimizer=FROZEN))

    def thrice(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
        yield [reply(work), frames[-1]]
        yield [reply(work), bytes(len(frames[-1]))]
        yield [failure(work)]

    hostile(swarm, [0], thrice)
    expert = swarm.swarm.expert("ffn0.0")

    for _ in range(5):
        x = rows().requires_grad_()
        y = expert(x)
        y.sum().backward()
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(x.grad, torch.ones_like(x))

    assert swarm.swarm.stats().failures == 0
    assert 16 <= swarm.swarm.stats().late_answers <= 20, "two for each of ten calls; the last two may be under way"


def test_nobody_can_answer_anothers_call(small_swarm, hostile):
    """Mallory answers every id near her own before bob answers his call."""
    swarm = small_swarm(layer((2,), optimizer=FROZEN))
    sent = threading.Event()

    def answers_everything(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
        for call_id in range(max(0, work.call_id - 100), work.call_id + 100):
            if call_id != work.call_id:
                yield [reply(work, call_id=call_id), bytes(len(DATA))]
                yield [failure(work, call_id=call_id)]
        yield [reply(work), frames[-1]]
        sent.set()

    def bob(work: Work, tensors: list[Tensor]) -> Tensor:
        assert sent.wait(5.0)
        return 2 * tensors[-1]

    hostile(swarm, [0], answers_everything)
    swarm.add_wilful([1], bob)
    dmoe = DMoE(swarm.swarm, "ffn0", 2, k_min=2)
    x = rows()
    weights = dmoe.gate.line_scores(x).softmax(dim=1)

    y = dmoe(x)

    torch.testing.assert_close(y, x * (weights * torch.tensor([[1.0, 2.0]], dtype=x.dtype)).sum(dim=1, keepdim=True))
    assert swarm.swarm.stats().failures == 0
    assert swarm.swarm.stats().late_answers >= 150


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"public_key": Identity.generate().public_key}, WireError),
        ({"public_key": b""}, WireError),
        ({"version": 0}, (WireError, VersionMismatch)),
        ({"version": 99}, (WireError, VersionMismatch)),
        ({"version": -1}, (WireError, VersionMismatch)),
    ],
)
def test_a_wrong_welcome_ends_the_call_at_once(small_swarm, hostile, changes, error):
    swarm = small_swarm(layer((1,), deadline_s=DEADLINE_S))
    identity = Identity.generate()
    silent: Script = lambda work, frames: []  # noqa: E731
    with HostileNode(identity, silent, on_greeting=[welcome(identity, **changes)]) as mallory:
        swarm.announce(identity, mallory.port, [0])
        started = time.monotonic()

        with pytest.raises(error, match=r"ffn0\.0") as raised:
            swarm.swarm.expert("ffn0.0")(rows())

    assert time.monotonic() - started < AT_ONCE_S
    assert raised.value.peer == identity.name


def test_a_node_with_another_key_than_announced_is_refused_at_once(small_swarm, hostile):
    """Mallory stands at the endpoint that bob announces: the handshake fails, nothing was sent in the clear."""
    swarm = small_swarm(layer((1,), deadline_s=DEADLINE_S))
    with HostileNode(Identity.generate(), honest) as mallory:
        swarm.announce(Identity.generate(), mallory.port, [0])
        started = time.monotonic()

        with pytest.raises(PeerUnreachable, match=r"ffn0\.0"):
            swarm.swarm.expert("ffn0.0")(rows())

        assert time.monotonic() - started < AT_ONCE_S
        assert mallory.seen == []


@pytest.mark.parametrize(
    "words",
    ["\x1b[2J\x1b]0;owned\x07", "line\r\nERROR forged", "x" * 100_000, "\ud800".encode("utf-8", "surrogatepass")],
)
def test_the_words_of_a_failure_can_neither_fill_nor_forge_a_log(small_swarm, hostile, words):
    swarm = small_swarm(layer((1,), deadline_s=DEADLINE_S))
    hostile(swarm, [0], says(lambda w: failure(w, message=words)))

    with pytest.raises((ExpertFailed, WireError), match=r"ffn0\.0") as raised:
        swarm.swarm.expert("ffn0.0")(rows())

    assert len(str(raised.value)) < 3_000
    assert "\x1b" not in str(raised.value)
    assert "\r" not in str(raised.value)


@pytest.mark.parametrize("kind", ["replies", "failures", "welcomes", "headers of garbage"])
def test_answers_without_end_cost_no_more_than_the_deadline(small_swarm, hostile, figure, kind):
    """Replies to nothing, as fast as they can be sent: the caller times out, and its memory does not grow."""
    deadline_s = 0.5
    swarm = small_swarm(layer((1,), deadline_s=deadline_s))
    made: list[HostileNode] = []
    stream = {
        "replies": lambda work: [reply(work, call_id=1 << 40), DATA],
        "failures": lambda work: [failure(work, call_id=1 << 40)],
        "welcomes": lambda work: [welcome(made[0].identity)],
        "headers of garbage": lambda work: [b"\xff\x00garbage"],
    }[kind]

    def endless(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
        message = stream(work)
        while not made[0].stopping:
            yield message

    made.append(hostile(swarm, [0], endless))
    expert = swarm.swarm.expert("ffn0.0")
    before = psutil.Process().memory_info().rss
    started = time.monotonic()

    with pytest.raises(WireError if kind == "headers of garbage" else CallTimeout, match=r"ffn0\.0"):
        expert(rows())

    took_s = time.monotonic() - started
    figure("seconds over the deadline", took_s - deadline_s)
    figure("answers dropped", swarm.swarm.stats().late_answers)
    assert took_s < deadline_s + LATE_S
    assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024


def test_a_caller_of_many_survives_one_that_floods(small_swarm, hostile):
    """A layer of one flooding node and one honest one: the honest answers arrive within the grace time."""
    swarm = small_swarm(layer((2,), optimizer=FROZEN, deadline_s=DEADLINE_S, grace_s=0.2))
    made: list[HostileNode] = []

    def endless(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
        while not made[0].stopping:
            yield [reply(work, call_id=1 << 40), DATA]

    made.append(hostile(swarm, [0], endless))
    swarm.add_wilful([1], twice)
    x = rows()
    started = time.monotonic()

    y = DMoE(swarm.swarm, "ffn0", 2)(x)

    assert time.monotonic() - started < AT_ONCE_S
    torch.testing.assert_close(y, 2 * x)


@pytest.mark.parametrize("hint_ms", [None, 0, 1, 1 << 53])
def test_a_node_that_says_it_is_full_for_ever_is_believed_until_the_deadline(small_swarm, hostile, hint_ms):
    """Whatever its hint: neither a busy loop nor a wait beyond the deadline."""
    swarm = small_swarm(layer((1,), deadline_s=0.5))
    mallory = hostile(swarm, [0], says(lambda w: failure(w, code=NodeOverloaded.code, retry_after_ms=hint_ms)))
    started = time.monotonic()

    with pytest.raises(NodeOverloaded, match=r"ffn0\.0"):
        swarm.swarm.expert("ffn0.0")(rows())

    assert time.monotonic() - started < 0.5 + LATE_S
    assert len(mallory.seen) <= 5


def test_an_expert_that_its_host_denies_is_unknown(small_swarm, hostile):
    swarm = small_swarm(layer((1,)))
    hostile(swarm, [0], says(lambda w: failure(w, code=UnknownExpert.code)))

    with pytest.raises(UnknownExpert, match=r"ffn0\.0"):
        swarm.swarm.expert("ffn0.0")(rows())
