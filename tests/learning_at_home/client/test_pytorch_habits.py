"""What a PyTorch user expects of any module holds for DMoE and RemoteExpert, too. Real nodes, found through the DHT."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations
from torch.utils.checkpoint import checkpoint

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.swarm import Swarm
from learning_at_home.errors import SpecMismatch
from learning_at_home.project import ProjectRecord
from node_agent.testing import LocalSwarm
from tests.learning_at_home.client.small_swarm import layer

PROJECT = ProjectRecord(id="test", layers=(layer(dtype="float32", deadline_s=20.0),))
CALLS_PER_FORWARD = 4  # of the layer: each of its four experts is one of the four best


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalSwarm]:
    with LocalSwarm(PROJECT, num_nodes=2, in_process=True) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def swarm(nodes: LocalSwarm) -> Iterator[Swarm]:
    with Swarm.connect(bootstrap=nodes.bootstrap, project=nodes.project) as swarm:
        swarm.wait_until_alive()
        yield swarm


@pytest.fixture
def updates(nodes: LocalSwarm):
    """How many steps the experts have made since the test began."""

    def count() -> int:
        return sum(nodes.expert(uid).updates for uid in PROJECT.layers[0].cells.uids("ffn0"))

    before = count()
    return lambda: count() - before


def make_model(swarm: Swarm) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), DMoE(swarm, "ffn0", 4), nn.Linear(6, 2))


def dmoe_of(model: nn.Module) -> DMoE:
    (found,) = [module for module in model.modules() if isinstance(module, DMoE)]
    return found


def rows(number: int = 5) -> Tensor:
    return torch.randn(number, 6)


def step_through(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    loss: Tensor = model(x).square().mean()
    loss.backward()
    return loss


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_a_state_dict_holds_the_gate_alone_and_loads_strictly(swarm):
    model, other = make_model(swarm), make_model(swarm)

    report = other.load_state_dict(model.state_dict(), strict=True)

    assert not report.missing_keys
    assert not report.unexpected_keys
    assert [name for name in model.state_dict() if name.startswith("1.")] == [
        "1.gate.lines.weight",
        "1.gate.lines.bias",
    ]
    assert RemoteExpert(swarm, "ffn0.0.0").state_dict() == {}
    x = rows()
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x))


def test_a_checkpoint_file_is_read_with_weights_only(swarm, tmp_path):
    model = make_model(swarm)
    torch.save(model.state_dict(), tmp_path / "model.pt")

    other = make_model(swarm)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))

    assert torch.equal(dmoe_of(other).gate.lines.weight, dmoe_of(model).gate.lines.weight)


def test_training_mode_trains_and_evaluation_mode_gives_the_same_gradients_without_a_step(swarm, updates):
    model = make_model(swarm).eval()
    x = rows().requires_grad_()
    step_through(model, x)
    saliency, own = x.grad, gradients(model)
    assert updates() == 0

    x.grad = None
    model.zero_grad()
    step_through(model.train(), x)

    assert updates() == CALLS_PER_FORWARD
    torch.testing.assert_close(x.grad, saliency)
    for trained, evaluated in zip(gradients(model), own, strict=True):
        torch.testing.assert_close(trained, evaluated)


def test_the_mode_at_the_forward_counts(swarm, updates):
    model = make_model(swarm).eval()
    loss = model(rows()).sum()
    model.train()
    loss.backward()
    assert updates() == 0

    loss = model(rows()).sum()
    model.eval()
    loss.backward()
    assert updates() == CALLS_PER_FORWARD


def test_a_remote_expert_in_evaluation_or_without_requires_grad_is_not_trained(swarm, updates):
    expert = RemoteExpert(swarm, "ffn0.0.0")
    for frozen in (copy.deepcopy(expert).eval(), copy.deepcopy(expert).requires_grad_(False)):
        x = rows().requires_grad_()
        frozen(x).sum().backward()
        assert x.grad is not None
        assert not frozen(rows()).requires_grad
    assert updates() == 0

    frozen.requires_grad_(True)(rows()).sum().backward()
    assert updates() == 1


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_autograd_nothing_is_trained_and_nothing_kept(swarm, updates, without):
    model = make_model(swarm)
    with without():
        y = model(rows())
        z = RemoteExpert(swarm, "ffn0.0.0")(rows())

    assert not y.requires_grad
    assert not z.requires_grad
    assert updates() == 0


def test_a_frozen_model_is_frozen_whole_and_a_frozen_gate_may_have_experts_that_learn(swarm, updates):
    model = make_model(swarm).requires_grad_(False)
    x = rows().requires_grad_()
    step_through(model, x)
    assert x.grad is not None
    assert not model(rows()).requires_grad
    assert updates() == 0

    dmoe = DMoE(swarm, "ffn0", 4, train_experts=True)
    dmoe.requires_grad_(False)
    step_through(dmoe, rows())
    assert updates() == CALLS_PER_FORWARD
    assert not dmoe.eval()(rows()).requires_grad


def test_a_gate_may_learn_on_experts_that_do_not(swarm, updates):
    dmoe = DMoE(swarm, "ffn0", 4, train_experts=False)
    step_through(dmoe, rows())

    assert len(gradients(dmoe)) == 2
    assert updates() == 0


@pytest.mark.parametrize("entering", [torch.float32, torch.bfloat16])
def test_under_autocast_a_layer_takes_and_gives_what_a_local_one_would(swarm, entering):
    dmoe, expert, local = DMoE(swarm, "ffn0", 4).eval(), RemoteExpert(swarm, "ffn0.0.0").eval(), nn.Linear(6, 6)
    x = rows().to(entering)
    for module in (dmoe, expert):
        exact = module(x.float())
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(own)
            assert y.dtype == local(x).dtype == torch.bfloat16
        y.sum().backward()

        torch.testing.assert_close(y, exact.bfloat16())
        assert own.grad is not None
        assert own.grad.dtype == entering
    assert dmoe.gate.lines.weight.grad is not None
    assert dmoe.gate.lines.weight.grad.dtype == torch.float32


def test_a_model_trains_under_autocast(swarm, updates):
    model = make_model(swarm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(rows()).square().mean()
    loss.backward()

    assert updates() == CALLS_PER_FORWARD
    assert all(gradient.isfinite().all() for gradient in gradients(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_was_converted_takes_its_new_dtype_and_the_experts_keep_theirs(swarm, updates, dtype):
    model = make_model(swarm)
    model.append(RemoteExpertOfTwo(swarm))
    x = rows()
    with torch.no_grad():
        before = model(x)

    model.to(dtype)
    y = model(x.to(dtype))
    with torch.no_grad():
        again = copy.deepcopy(model).float()(x)
    y.sum().backward()

    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), before, atol=0.1, rtol=0.1)
    torch.testing.assert_close(again, before, atol=0.1, rtol=0.1)
    assert updates() == CALLS_PER_FORWARD + 1


class RemoteExpertOfTwo(nn.Module):
    """One expert behind a padding, so that it fits behind `make_model`."""

    def __init__(self, swarm: Swarm) -> None:
        super().__init__()
        self.expert = RemoteExpert(swarm, "ffn0.1.1")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expert(nn.functional.pad(x, (0, 4)))
        return y


def test_what_was_not_converted_is_still_refused_by_name(swarm):
    model = make_model(swarm).double()
    with pytest.raises(SpecMismatch, match=r"layer ffn0.*bfloat16\[5, 6\].*float32"):
        dmoe_of(model)(rows().bfloat16())
    with pytest.raises(SpecMismatch, match=r"layer ffn0.*float64\[5, 6\].*float32"):
        dmoe_of(make_model(swarm))(rows().double())


def test_a_model_may_be_moved(swarm):
    model = make_model(swarm).to("cpu").to(torch.device("cpu"), non_blocking=True)
    with torch.no_grad():
        assert model(rows()).shape == (5, 2)


def test_gradients_accumulate_and_each_backward_is_a_step_of_the_experts(swarm, updates):
    model = make_model(swarm).eval()
    x = rows()
    step_through(model, x)
    once = [gradient.clone() for gradient in gradients(model)]
    step_through(model, x)
    for accumulated, one in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(accumulated, 2 * one)

    model.train()
    for _ in range(2):
        step_through(model, x)
    assert updates() == 2 * CALLS_PER_FORWARD


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_asks_forward_again_and_backward_once(swarm, updates, use_reentrant):
    model = make_model(swarm)
    x = rows().requires_grad_()
    torch.autograd.grad(model.eval()(x).sum(), x)
    wanted = torch.autograd.grad(model(x).sum(), x)[0]
    model.train()
    before = swarm.stats().calls

    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()

    torch.testing.assert_close(x.grad, wanted)
    assert updates() == CALLS_PER_FORWARD
    assert swarm.stats().calls - before == 3 * CALLS_PER_FORWARD


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_surroundings_of_a_layer_may_be_compiled(swarm, updates, backend):
    model = make_model(swarm).eval()
    model.append(RemoteExpertOfTwo(swarm).eval())
    compiled = torch.compile(model, backend=backend)
    x, own = rows().requires_grad_(), rows()
    own = x.detach().clone().requires_grad_()

    step_through(compiled, own)
    step_through(model, x)

    torch.testing.assert_close(own.grad, x.grad)
    assert updates() == 0
    step_through(torch.compile(make_model(swarm), backend=backend), rows())
    assert updates() == CALLS_PER_FORWARD
    torch.compiler.reset()


def test_deterministic_mode_gives_the_same_numbers_twice(swarm):
    model = make_model(swarm).eval()
    x = rows(64)
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            model.zero_grad()
            loss = step_through(model, x)
            found.append([loss, *(gradient.clone() for gradient in gradients(model))])
    finally:
        torch.use_deterministic_algorithms(False)

    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_the_gate_may_be_parametrized_and_its_gradient_clipped(swarm):
    model = make_model(swarm)
    parametrizations.weight_norm(dmoe_of(model).gate.lines)
    step_through(model, rows())

    clip_grad_norm_(dmoe_of(model).gate.parameters(), 1e-3)

    norm = torch.stack([gradient.norm() for gradient in gradients(dmoe_of(model))]).norm()
    assert 0 < norm <= 1.001e-3
    assert "1.gate.lines.parametrizations.weight.original0" in model.state_dict()


def test_copies_share_the_swarm_and_nothing_else(swarm, updates):
    model = make_model(swarm)
    step_through(model, rows())
    twin = copy.deepcopy(model)

    with torch.no_grad():
        dmoe_of(twin).gate.lines.weight.zero_()
    step_through(twin, rows())

    assert dmoe_of(model).gate.lines.weight.abs().sum() > 0
    assert dmoe_of(twin).trains_experts
    assert updates() == 2 * CALLS_PER_FORWARD


@pytest.mark.parametrize("make", [make_model, lambda swarm: RemoteExpert(swarm, "ffn0.0.0"), lambda swarm: swarm])
def test_pickling_is_refused_with_what_to_do_instead(swarm, make, tmp_path):
    with pytest.raises(TypeError, match=r"state_dict.*connect again"):
        pickle.dumps(make(swarm))
    with pytest.raises(TypeError, match=r"state_dict.*connect again"):
        torch.save(make(swarm), tmp_path / "whole.pt")


def test_gradients_of_chosen_parameters_reach_no_experts_before_them(swarm, updates):
    """As torch.autograd.grad is defined; docs/footguns.md says so."""
    dmoe = DMoE(swarm, "ffn0", 4)
    torch.autograd.grad(dmoe(rows()).sum(), list(dmoe.parameters()))
    assert updates() == 0

    dmoe(rows()).sum().backward()
    assert updates() == CALLS_PER_FORWARD
