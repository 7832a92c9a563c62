"""RemoteExpert against the same module run locally, its checks, and its failures. Real nodes on real sockets."""

import asyncio
import copy
import math
import threading
import time

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from learning_at_home.client.fanout import MAX_RETRIES, Task, retry_at
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.errors import (
    BatchTooLarge,
    CallTimeout,
    ConfigError,
    EmptyBatch,
    ExpertFailed,
    InvalidUid,
    NodeOverloaded,
    NonFiniteTensor,
    PeerUnreachable,
    SpecMismatch,
    UnknownExpert,
    UnknownLayer,
    UsageError,
    WireError,
)
from learning_at_home.peer_address import PeerAddress
from learning_at_home.wire.messages import TensorSpec
from tests.learning_at_home.client.small_swarm import FROZEN, SGD, layer, twice


def rows(number: int = 3) -> Tensor:
    return torch.randn(number, 6, dtype=torch.float64)


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def test_output_gradient_and_update_equal_the_local_module(small_swarm):
    swarm = small_swarm(layer())
    host = swarm.add_host([0, 1, 2, 3])
    local = swarm.local(1)
    x, head = rows().requires_grad_(), rows()
    x_local = x.detach().clone().requires_grad_()

    y = swarm.swarm.expert("ffn0.0.1")(x)
    (y * head).sum().backward()
    y_local = local(x_local)
    (y_local * head).sum().backward()
    torch.optim.SGD(local.parameters(), lr=SGD.learning_rate).step()

    torch.testing.assert_close(y, y_local)
    torch.testing.assert_close(x.grad, x_local.grad)
    assert host.drain(5.0)
    torch.testing.assert_close(weights(host.experts.find("ffn0.0.1").module), weights(local))


def test_the_output_may_be_changed_in_place_and_watched_as_a_local_layers(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_host([0, 1, 2, 3])
    local = swarm.local(1)
    x = rows().requires_grad_()
    x_local = x.detach().clone().requires_grad_()
    seen: list[Tensor] = []

    for module, inputs in ((swarm.swarm.expert("ffn0.0.1"), x), (local, x_local)):
        y = module(inputs)
        y.register_hook(seen.append)
        z = y.mul_(2.0).relu_()
        z.sum().backward()

    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(x.grad, x_local.grad)


def test_a_transform_that_a_remote_call_cannot_follow_is_refused_before_anything_is_sent(small_swarm):
    swarm = small_swarm(layer())
    host = swarm.add_host([0, 1, 2, 3])
    expert = swarm.swarm.expert("ffn0.0.1")

    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda x: expert(x).sum())(rows())
    assert host.statistics.rows == 0


def test_experts_are_trained_though_their_input_needs_no_gradient(small_swarm):
    swarm = small_swarm(layer())
    host = swarm.add_host([0, 1, 2, 3])

    swarm.swarm.expert("ffn0.0.0")(rows()).sum().backward()

    assert host.drain(5.0)
    assert host.experts.find("ffn0.0.0").updates == 1


def test_gradcheck_passes_with_a_frozen_optimizer(small_swarm):
    swarm = small_swarm(layer(hidden_size=3, optimizer=FROZEN))
    swarm.add_host([0, 1, 2, 3])
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(swarm.swarm.expert("ffn0.1.1"), (x,))


def test_without_autograd_no_backward_is_sent(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    with torch.no_grad():
        y = swarm.swarm.expert("ffn0.0.0")(rows())

    assert not y.requires_grad
    assert [work.operation for work in node.seen] == ["forward"]


def test_second_derivatives_are_refused_before_anything_is_sent(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    x = rows().requires_grad_()
    y = swarm.swarm.expert("ffn0.0.0")(x)

    with pytest.raises(UsageError, match=r"ffn0\.0\.0.*create_graph"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    assert len(node.seen) == 1


def test_the_input_may_be_changed_after_the_call(small_swarm):
    """What was sent is a copy; autograd itself refuses a backward through a changed input."""
    swarm = small_swarm(layer(optimizer=FROZEN))
    swarm.add_wilful([0, 1, 2, 3], twice)
    x = rows().requires_grad_()
    y = swarm.swarm.expert("ffn0.0.0")(x)

    with torch.no_grad():
        x.zero_()

    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize(
    "bad, error, words",
    [
        (lambda: torch.randn(3, 5, dtype=torch.float64), SpecMismatch, r"float64\[3, 5\].*float64\[\*, 6\]"),
        (lambda: torch.randn(3, 6), SpecMismatch, r"float32\[3, 6\].*float64\[\*, 6\]"),
        (lambda: torch.randn(6, dtype=torch.float64), SpecMismatch, r"float64\[6\]"),
        (lambda: torch.tensor(1.0, dtype=torch.float64), SpecMismatch, r"float64\[\]"),
        (lambda: [[1.0] * 6], SpecMismatch, "list"),
        (lambda: rows(0), EmptyBatch, "no rows"),
        (lambda: rows(4097), BatchTooLarge, "4,097 rows.*4,096"),
    ],
)
def test_bad_input_is_named_before_anything_is_sent_and_the_next_call_works(small_swarm, bad, error, words):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    expert = swarm.swarm.expert("ffn0.0.0")

    with pytest.raises(error, match=rf"(?s)ffn0\.0\.0.*{words}"):
        expert(bad())

    assert node.seen == []
    x = rows()
    torch.testing.assert_close(expert(x), 2 * x)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_input_that_spoils_the_output_is_named_and_the_next_call_works(small_swarm, number):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")

    with pytest.raises(NonFiniteTensor, match=r"ffn0\.0\.0: input 0 \(float64\[3, 6\]\) holds NaN or infinity"):
        expert(rows().fill_(number))
    with pytest.raises(NonFiniteTensor, match=r"ffn0\.0\.0: input 0"):
        asyncio.run(expert.acall(rows().fill_(number)))

    x = rows()
    torch.testing.assert_close(expert(x), 2 * x)


def test_an_expert_that_spoils_good_inputs_is_to_blame_itself(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], lambda work, tensors: torch.full_like(tensors[0], float("nan")))

    with pytest.raises(ExpertFailed, match=r"ffn0\.0\.0: its answer holds NaN"):
        swarm.swarm.expert("ffn0.0.0")(rows())


def test_a_gradient_that_is_not_finite_never_leaves(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0, 1, 2, 3], twice)
    y = swarm.swarm.expert("ffn0.0.0")(rows())

    with pytest.raises(NonFiniteTensor, match=r"ffn0\.0\.0"):
        (y * float("nan")).sum().backward()
    assert [work.operation for work in node.seen] == ["forward"]


@pytest.mark.parametrize(
    "uid, error",
    [("ffn0.2.0", InvalidUid), ("ffn0.1", InvalidUid), ("ffn0", InvalidUid), ("other.0.0", UnknownLayer)],
)
def test_a_wrong_uid_is_refused_at_once(small_swarm, uid, error):
    with pytest.raises(error):
        small_swarm(layer()).swarm.expert(uid)


def test_an_expert_that_nobody_serves_says_so(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0, 1], twice)

    with pytest.raises(UnknownExpert, match=r"ffn0\.1\.1.*2 of 4 experts"):
        swarm.swarm.expert("ffn0.1.1")(rows())


@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize(
    "answer, error, words",
    [
        (lambda work, tensors: ExpertFailed("ffn0.0.0: ValueError: out of luck"), ExpertFailed, "out of luck"),
        (lambda work, tensors: tensors[0][:, :5], WireError, r"float64\[3, 5\]"),
        (lambda work, tensors: tensors[0].float(), WireError, "float32"),
        (lambda work, tensors: tensors[0] / 0, ExpertFailed, "NaN or infinity"),
        (lambda work, tensors: None, CallTimeout, "no answer"),
    ],
)
def test_what_a_node_does_wrong_is_a_typed_error_that_names_the_expert(small_swarm, operation, answer, error, words):
    swarm = small_swarm(layer(deadline_s=0.3))
    swarm.add_wilful([0], lambda work, tensors: (answer if work.operation == operation else twice)(work, tensors))
    expert = swarm.swarm.expert("ffn0.0.0")
    started = time.monotonic()

    with pytest.raises(error, match=rf"(?s)ffn0\.0\.0.*{words}") as raised:
        expert(rows().requires_grad_()).sum().backward()

    assert raised.value.peer == swarm.identities[0].name
    assert time.monotonic() - started < 0.3 + 1.0
    assert swarm.swarm.stats().failures == 1


def test_a_full_node_is_asked_again_after_its_hint(small_swarm):
    swarm = small_swarm(layer())
    refusals = [NodeOverloaded("full", retry_after_s=0.01), NodeOverloaded("still full", retry_after_s=0.01)]
    node = swarm.add_wilful([0], lambda work, tensors: refusals.pop() if refusals else twice(work, tensors))
    x = rows()

    torch.testing.assert_close(swarm.swarm.expert("ffn0.0.0")(x), 2 * x)
    assert len(node.seen) == 3


def test_a_node_that_stays_full_is_an_error_within_the_deadline(small_swarm):
    swarm = small_swarm(layer(deadline_s=0.3))
    swarm.add_wilful([0], lambda work, tensors: NodeOverloaded("full", retry_after_s=0.05))

    with pytest.raises(NodeOverloaded, match=r"ffn0\.0\.0"):
        swarm.swarm.expert("ffn0.0.0")(rows())
    assert swarm.directory.suspected(time.monotonic()) == ()


def test_a_killed_node_is_an_error_at_once_and_is_tried_again_when_it_is_back(small_swarm):
    """Nobody else can be asked, so the last holder is, though it is suspected."""
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    expert(rows())
    node.stop()

    with pytest.raises(PeerUnreachable, match=r"ffn0\.0\.0"):
        expert(rows())
    assert swarm.swarm.layer("ffn0").num_alive == 0
    with pytest.raises(PeerUnreachable, match=r"ffn0\.0\.0"):
        expert(rows())


def test_backward_goes_to_the_host_that_did_the_forward_though_the_expert_has_moved(small_swarm):
    """Another host has other weights: it must neither give this gradient nor be trained by it."""
    swarm = small_swarm(layer())
    alice = swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    x, z = rows().requires_grad_(), rows().requires_grad_()
    y, lost = expert(x), expert(z)
    swarm.announce(swarm.identities[0], alice.server.port, [0], state="draining")
    bob = swarm.add_wilful([0], lambda work, tensors: 3 * tensors[-1])

    y.sum().backward()
    alice.stop()
    with pytest.raises(PeerUnreachable, match=r"ffn0\.0\.0"):
        lost.sum().backward()

    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))
    assert [work.operation for work in alice.seen] == ["forward", "forward", "backward"]
    assert bob.seen == []
    torch.testing.assert_close(expert(x), 3 * x)


@pytest.mark.slow
def test_a_full_node_with_a_tiny_hint_is_asked_five_times_at_most(small_swarm):
    swarm = small_swarm(layer())
    node = swarm.add_wilful([0], lambda work, tensors: NodeOverloaded("full", retry_after_s=1e-9))

    with pytest.raises(NodeOverloaded):
        swarm.swarm.expert("ffn0.0.0")(rows())
    assert len(node.seen) == 1 + MAX_RETRIES


@pytest.mark.parametrize(
    "hint_s, least_s, most_s",
    [
        (None, 0.05, 0.1),
        (0.001, 0.05, 0.1),
        (-1e9, 0.05, 0.1),
        (math.nan, 0.05, 0.1),
        (1.0, 1.0, 2.0),
        (1e300, 2.5, 5.0),
        (math.inf, 2.5, 5.0),
    ],
)
def test_a_full_nodes_hint_counts_within_bounds(small_swarm, hint_s, least_s, most_s):
    holder = PeerAddress(bytes(32), ("tcp://127.0.0.1:1",), "alice")
    task = Task("ffn0.0.0", 0, holder, "forward", (), 1, np.arange(1), TensorSpec("float64", (1, 6)))
    error = NodeOverloaded("full", retry_after_s=hint_s)

    at = retry_at(task, error, now=100.0)
    assert at is not None
    assert least_s <= at - 100.0 <= most_s
    assert retry_at(replace(task, retries=MAX_RETRIES), error, now=100.0) is None


def test_threads_share_an_expert(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = swarm.swarm.expert("ffn0.0.0")
    answers: dict[int, bool] = {}

    def work(number: int) -> None:
        for _ in range(5):
            x = torch.randn(2, 6, dtype=torch.float64)
            answers[number] = answers.get(number, True) and torch.equal(expert(x), 2 * x)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert answers == dict.fromkeys(range(8), True)
    assert swarm.swarm.stats().calls == 40


def test_a_layer_of_sequences(small_swarm):
    swarm = small_swarm(layer(architecture="transformer", hidden_size=8, sequence_length=3))
    swarm.add_host([0, 1, 2, 3])
    x = torch.randn(2, 3, 8, dtype=torch.float64)

    torch.testing.assert_close(swarm.swarm.expert("ffn0.1.0")(x), swarm.local(2)(x))
    with pytest.raises(SpecMismatch, match=r"float64\[\*, 3, 8\]"):
        swarm.swarm.expert("ffn0.1.0")(x[:, :2])


def test_a_non_contiguous_input(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    x = torch.randn(6, 4, dtype=torch.float64).t()

    torch.testing.assert_close(swarm.swarm.expert("ffn0.0.0")(x), 2 * x)


def test_copies_share_the_connections_and_pickling_is_refused(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    expert = RemoteExpert(swarm.swarm, "ffn0.0.0", deadline_s=2.0)
    x = rows()

    torch.testing.assert_close(copy.deepcopy(expert)(x), 2 * x)
    assert "ffn0.0.0" in repr(expert)
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.copy(swarm.swarm.calls)
    with pytest.raises(ConfigError, match="deadline_s"):
        RemoteExpert(swarm.swarm, "ffn0.0.0", deadline_s=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_inputs_come_back_on_cuda(small_swarm):
    swarm = small_swarm(layer())
    swarm.add_wilful([0], twice)
    x = rows().cuda().requires_grad_()
    y = swarm.swarm.expert("ffn0.0.0")(x)
    y.sum().backward()

    assert y.is_cuda
    assert x.grad is not None
    assert x.grad.is_cuda


def test_both_ends_count_the_updates_between_a_forward_and_its_backward(small_swarm):
    swarm = small_swarm(layer())
    host = swarm.add_host([0])
    expert = swarm.swarm.expert("ffn0.0.0")
    assert swarm.swarm.stats().staleness_p50 is None

    early, late, evaluated = (rows().requires_grad_() for _ in range(3))
    y_early, y_late = expert(early), expert(late)
    expert(evaluated)
    for y in (y_late, y_early):
        y.sum().backward()

    stats = swarm.swarm.stats()
    assert (stats.staleness_p50, stats.staleness_max) == (1, 1)  # of two, the upper one
    assert host.device_thread.wait_until_idle(10.0)
    assert host.statistics.staleness(time.monotonic()) == {0: 1, 1: 1}
