"""Experts whose parameters are stacked are the experts they were; grouping is used only where it pays."""

import subprocess
import sys

import pytest
import torch

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.experts import grouping
from node_agent.experts.calibration import UNBOUNDED_ROWS, rows_worth_grouping, seconds_on
from node_agent.experts.expert import Expert
from node_agent.experts.grouping import Group, bounds_within, make_experts
from node_agent.experts.memory import measure
from node_agent.experts.portions import Bounds, Portion
from node_agent.experts.stacks import ExpertStack, make_stacked

CPU = torch.device("cpu")
FFN = LayerSpec(prefix="ffn0", grid=(4,), hidden_size=8)
MLP = LayerSpec(prefix="mlp0", grid=(4,), architecture="mlp", hidden_size=8)
PROJECT = ProjectRecord(id="digits", layers=(FFN, MLP))
UIDS = [ExpertUid("mlp0", (1,)), ExpertUid("ffn0", (0,)), ExpertUid("ffn0", (2,)), ExpertUid("mlp0", (3,))]


def made_stack(layer: LayerSpec = FFN, number: int = 3) -> ExpertStack:
    uids = [ExpertUid(layer.prefix, (cell,)) for cell in range(number)]
    return ExpertStack(*make_stacked(uids, layer, "digits", CPU), Bounds(100, 10_000))


def test_stacked_experts_begin_with_the_weights_of_their_cells():
    experts, groups = make_experts(UIDS, PROJECT, CPU, "on")

    assert [expert.uid for expert in experts] == UIDS
    assert [list(group.positions) for group in groups] == [["mlp0.1", "mlp0.3"], ["ffn0.0", "ffn0.2"]]
    for expert in experts:
        single = Expert.create(expert.uid, expert.layer, "digits", CPU)
        assert all(map(torch.equal, expert.module.parameters(), single.module.parameters()))


def test_a_step_of_one_stacked_expert_changes_its_part_of_the_stack_only():
    stack = made_stack()
    before = [memory.clone() for memory in stack._stacked]
    expert = stack.experts[1]

    expert.step(expert.gradients(torch.randn(3, 8), torch.randn(3, 8)).clipped(1.0))

    for memory, was, parameter in zip(stack._stacked, before, expert.module.parameters(), strict=True):
        assert torch.equal(memory[0], was[0])
        assert torch.equal(memory[2], was[2])
        assert torch.equal(memory[1], parameter)
        assert not torch.equal(memory[1], was[1])


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_on_a_cpu_nothing_is_grouped_unless_it_is_forced(mode):
    assert make_experts(UIDS, PROJECT, CPU, mode)[1] == []


def test_a_layer_with_one_expert_is_not_grouped():
    assert make_experts(UIDS[1:2], PROJECT, CPU, "on")[1] == []


def test_a_layer_whose_gradients_do_not_fit_twice_is_not_grouped():
    assert make_experts(UIDS, PROJECT, CPU, "on", spare_bytes=0)[1] == []
    assert len(make_experts(UIDS, PROJECT, CPU, "on", spare_bytes=10_000_000)[1]) == 2


def test_bounds_leave_half_of_the_memory_to_weights_and_half_to_rows():
    memory = measure(FFN, 1)
    weights = 4 * sum(parameter.numel() for parameter in Expert.create(UIDS[1], FFN, "digits", CPU).trained)

    bounds = bounds_within(FFN, 2_000_000)

    assert bounds.experts == 1_000_000 // (3 * weights)
    assert bounds.rows == 1_000_000 // (memory.passing_bytes - 2 * weights)
    assert bounds_within(FFN, -5) == Bounds(0, 0, bounds.launch_rows)


@pytest.mark.parametrize(
    "grouped_s,alone_s,expected",
    [
        ([1, 1, 1, 1], [2, 2, 2, 2], UNBOUNDED_ROWS),
        ([1, 1, 3], [2, 2, 2], 64),
        ([3], [2], 0),
        ([2], [2], 0),
    ],
)
def test_grouping_is_used_up_to_the_first_size_at_which_it_does_not_pay(grouped_s, alone_s, expected):
    times = iter([s for pair in zip(grouped_s, alone_s, strict=True) for s in pair] * 2)

    worth = rows_worth_grouping(made_stack(), lambda work: next(times))

    assert worth == {"forward": expected, "backward": expected}


def test_sizes_that_memory_does_not_hold_are_not_tried():
    stack = made_stack()
    stack.bounds = Bounds(100, 2 * 64)
    times = iter(range(99))

    worth = rows_worth_grouping(stack, lambda work: next(times))

    assert worth == {"forward": 64, "backward": 64}
    assert next(times) == 2 * 2 * 2  # two operations, two sizes, two ways


def test_the_stopwatch_runs_the_work_and_calibration_changes_no_expert():
    stack = made_stack()
    before = [memory.clone() for memory in stack._stacked]

    worth = rows_worth_grouping(stack, seconds_on(CPU))

    assert set(worth) == {"forward", "backward"}
    assert all(map(torch.equal, stack._stacked, before))
    assert all(expert.updates == 0 for expert in stack.experts)


def test_on_a_gpu_the_measurement_decides(monkeypatch):
    monkeypatch.setattr(grouping, "rows_worth_grouping", lambda stack, seconds: {"forward": 64, "backward": 0})
    experts, stacked = make_stacked(UIDS[1:3], FFN, "digits", CPU)

    group = grouping._try_group(experts, stacked, "auto", 10_000_000)

    assert isinstance(group, Group)
    assert group.longest == {"forward": 64, "backward": 0, "eval_forward": 64}


def test_a_frozen_stack_gives_gradients_of_rows_only():
    layer = LayerSpec(prefix="ffn0", grid=(4,), hidden_size=8, optimizer=OptimizerSpec(name="frozen"))
    stack = made_stack(layer)
    portion = Portion((0, 1, 2), 2)

    of_rows, of_parameters = stack.gradients(portion, torch.randn(3, 2, 8), torch.randn(3, 2, 8))

    assert of_rows.shape == (3, 2, 8)
    assert of_parameters == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_group_on_a_gpu_agrees_with_its_experts_alone():
    experts, groups = make_experts(UIDS, PROJECT, torch.device("cuda:0"), "on")

    assert len(groups) == 2  # the trial compared them
    assert all(parameter.device.type == "cuda" for expert in experts for parameter in expert.trained)
    assert set(rows_worth_grouping(groups[0].stack, seconds_on(torch.device("cuda:0")))) == {"forward", "backward"}


@pytest.mark.slow
def test_a_node_that_groups_nothing_loads_no_compiler():
    code = """
import sys, torch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.computation import compute
layer = LayerSpec(prefix="ffn0", grid=(4,), hidden_size=8)
project = ProjectRecord(id="digits", layers=(layer,))
hosted = HostedExperts.create([ExpertUid("ffn0", (0,)), ExpertUid("ffn0", (1,))], project, torch.device("cpu"))
before = set(sys.modules)
for requests in (1, 3):
    compute(hosted.by_uid["ffn0.0"], "backward", [(torch.randn(2, 8), torch.randn(2, 8))] * requests)
compute(hosted.by_uid["ffn0.0"], "forward", [(torch.randn(2, 8),)])
assert not any(name.startswith(("sympy", "torch._dynamo")) for name in sys.modules)
assert len(set(sys.modules) - before) < 5, sorted(set(sys.modules) - before)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
