"""Random and mutated messages over encrypted connections: to a real node, and from a hostile node to a real caller.

Afterwards nothing has changed: weights and updates to the byte, descriptors, threads, memory. An honest call is right.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec
import psutil
import pytest
import torch

from learning_at_home.errors import GreetingRequired, LearningAtHomeError
from learning_at_home.identity import Identity
from learning_at_home.wire.messages import Failure, Reply, Work
from node_agent.runtime.host import Host
from tests.faults.answers import failure, reply, rows
from tests.faults.corpus import UIDS, caller_messages, node_messages
from tests.faults.gate import until
from tests.faults.hostile_node import HostileNode
from tests.faults.mutations import Fuzzer
from tests.faults.raw_caller import RawCaller, request
from tests.faults.rounds import FULL, LIMIT_S
from tests.learning_at_home.client.small_swarm import FROZEN, SGD, SmallSwarm, layer

NUM_TO_A_NODE = 1_000_000 if FULL else 10_000
NUM_TO_A_CALLER = 50_000 if FULL else 400
WARM_UP = NUM_TO_A_NODE // 10  # messages before anything is measured: what is kept has bounds, and is there by then
NUM_CONNECTIONS = 8
READ_EVERY = 32
LAST_ID = 1 << 40  # of the call that is sent when all else was
PATIENCE_MS = 5_000
MOST_GROWTH_BYTES = 64 * 1024 * 1024
FRAME_LIMIT_BYTES = 1 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S)]


class Attack:
    """Mallory's connections to one node, and what came back by them."""

    def __init__(self, callers: Sequence[RawCaller], seed: int) -> None:
        self.callers = callers
        self.codes: dict[int, int] = {}  # of failures, 0 for replies, -1 for welcomes
        self._fuzzer = Fuzzer(caller_messages(callers[0].identity, round(time.time() * 1000)), seed)

    def run(self, numbers: range) -> None:
        """Send these messages. None is an honest backward: their numbers are all NaN."""
        for number in numbers:
            caller = self.callers[number % len(self.callers)]
            parts = self._fuzzer.message(number)
            if b"backward" in parts[0]:
                parts[1:] = [b"\xff" * len(part) for part in parts[1:]]
            caller.send(parts)
            if number % READ_EVERY == 0:
                self.read()
        for caller in self.callers:
            self._wait_for(caller)

    def _wait_for(self, caller: RawCaller) -> None:
        """Until all that it sent is taken in: a connection's messages are taken in their order."""
        while True:
            caller.send(request("test", "ffn0.9", "forward", rows(), call_id=LAST_ID))
            while caller.waits(PATIENCE_MS):
                if self._count(caller, caller.receive()[0]) == LAST_ID:
                    return
            caller.send([caller.greeting()])  # the connection was ended, and this message with it: once more

    def read(self) -> None:
        for caller in self.callers:
            while caller.waits(0):
                self._count(caller, caller.receive()[0])

    def _count(self, caller: RawCaller, message: object) -> int | None:
        if isinstance(message, Failure) and message.code == GreetingRequired.code:
            # The connection was ended by a message that was too long, and made anew.
            caller.send([caller.greeting()])
            caller.send(request("test", "ffn0.9", "forward", rows(), call_id=LAST_ID))
        code = message.code if isinstance(message, Failure) else 0 if isinstance(message, Reply) else -1
        self.codes[code] = self.codes.get(code, 0) + 1
        return message.call_id if isinstance(message, Failure) else None


def state_of(host: Host) -> list[bytes]:
    """Weights and updates of every expert."""
    experts = [host.experts.find(uid) for uid in UIDS]
    weights = [p.detach().numpy().tobytes() for expert in experts for p in expert.module.parameters()]
    return [*weights, *(str(expert.updates).encode() for expert in experts)]


def test_a_node_survives_whatever_callers_send(small_swarm, raw_caller, seed, figure):
    swarm: SmallSwarm = small_swarm(layer((2,)))
    host = swarm.add_host([0, 1])
    endpoint = f"tcp://127.0.0.1:{host.server.port}"
    key = swarm.identities[0].public_key
    attack = Attack([raw_caller(key, endpoint).greet() for _ in range(NUM_CONNECTIONS)], seed)
    attack.run(range(WARM_UP))
    process = psutil.Process()
    gc.collect()
    before = state_of(host)
    descriptors, threads, rss = process.num_fds(), threading.active_count(), process.memory_info().rss
    started = time.monotonic()

    attack.run(range(WARM_UP, WARM_UP + NUM_TO_A_NODE))

    took_s = time.monotonic() - started
    grown = process.memory_info().rss - rss
    figure("messages", NUM_TO_A_NODE)
    figure("messages per second", NUM_TO_A_NODE / took_s)
    figure("answers by code (0 replies, -1 welcomes)", dict(sorted(attack.codes.items())))
    figure("memory grown, MB", grown / 1e6)
    assert host.failure() is None
    assert state_of(host) == before, f"LAH_FUZZ_SEED={seed}"
    assert grown < MOST_GROWTH_BYTES
    until(lambda: process.num_fds() <= descriptors, "every descriptor is closed that was not open before")
    assert threading.active_count() == threads
    swarm.announce(swarm.identities[0], host.server.port, [0, 1])  # the first one lived for a minute
    check_that_an_honest_caller_is_served(swarm, host)


def check_that_an_honest_caller_is_served(swarm: SmallSwarm, host: Host) -> None:
    local = swarm.local(0)
    x, head = rows().requires_grad_(), rows()
    x_local = x.detach().clone().requires_grad_()
    y = swarm.swarm.expert(UIDS[0])(x)
    y.backward(head)
    y_local = local(x_local)
    y_local.backward(head)
    torch.optim.SGD(local.parameters(), lr=SGD.learning_rate).step()
    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    expert = host.experts.find(UIDS[0])
    assert expert.updates == 1
    for hosted, expected in zip(expert.module.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(hosted, expected)


def test_a_caller_survives_whatever_a_node_answers(small_swarm, hostile, seed, figure):
    """Each call is answered by a mutated message, then by a failure that ends it: a right tensor or a typed error."""
    swarm: SmallSwarm = small_swarm(layer((1,), optimizer=FROZEN))
    fuzzer = Fuzzer(node_messages(Identity.generate()), seed)
    number: int | None = 0

    def mutated(work: Work, frames: list[bytes]) -> Iterator[Sequence[bytes]]:
        if number is None:
            yield [reply(work), *frames]
            return
        parts = fuzzer.message(number)
        if number % 2:  # half of them are to this call, if anything is left of the id
            parts[0] = parts[0].replace(b"\xa7call_id\x07", b"\xa7call_id" + msgspec.msgpack.encode(work.call_id), 1)
        yield [part[:FRAME_LIMIT_BYTES] for part in parts]
        yield [failure(work)]

    mallory: HostileNode = hostile(swarm, [0], mutated)
    expert = swarm.swarm.expert("ffn0.0")
    outcomes: dict[str, int] = {}
    process = psutil.Process()
    rss = descriptors = 0
    started = time.monotonic()
    for number in range(NUM_TO_A_CALLER):  # the script reads it
        if number % 1_000 == 0:
            swarm.announce(mallory.identity, mallory.port, [0])  # it lives for a minute
        if number == NUM_TO_A_CALLER // 5:
            rss, descriptors = process.memory_info().rss, process.num_fds()
        try:
            y = expert(rows())
        except LearningAtHomeError as error:
            outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            pytest.fail(f"LAH_FUZZ_SEED={seed}, message {number}: {type(error).__name__}: {error}")
        else:
            outcome = "an answer"
            assert y.shape == (3, 6)
            assert torch.isfinite(y).all()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    figure("calls", NUM_TO_A_CALLER)
    figure("calls per second", NUM_TO_A_CALLER / (time.monotonic() - started))
    figure("outcomes", outcomes)
    assert {"WireError", "ExpertFailed"} <= set(outcomes)
    assert process.memory_info().rss - rss < MOST_GROWTH_BYTES
    assert process.num_fds() <= descriptors + 8, "one connection more or less"
    assert len(mallory.seen) == NUM_TO_A_CALLER
    number = None
    x = rows()
    torch.testing.assert_close(expert(x), x)
