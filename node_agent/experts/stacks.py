"""Experts of one layer with their parameters stacked, so that many of them compute as one grouped product.

Each module's parameters are views of the stack: state, optimizer and a computation of one expert alone are what they
were. A grouped product is the module itself under torch.func.vmap: no architecture has to know of it, and one that vmap
cannot run, or runs differently, is found by a trial and stays ungrouped. Knows nothing of requests.
Policy and price: docs/decisions/0007-grouped-experts.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec
from node_agent.experts.architectures import build_expert
from node_agent.experts.expert import Expert
from node_agent.experts.gradients import in_own_memory
from node_agent.experts.portions import Bounds, Portion
from node_agent.experts.pullback import pull_back

# E experts in the stack, A experts of a portion, L rows of the longest of them; the others' rows are padded with zeros

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a trial, relative to the largest number
NO_BATCHING_RULE = "not yet implemented the batching rule"  # vmap says so before it computes one expert after the other
TRIAL_ROWS = {0: 3, 1: 1}  # by position


class ExpertStack:
    """Experts of one layer on one device, and what computes several of them at once."""

    def __init__(self, experts: Sequence[Expert], stacked: Sequence[Tensor], bounds: Bounds) -> None:
        """`stacked` [E, ...]: the memory of the modules' parameters, in their order."""
        self.experts = tuple(experts)
        self.layer = experts[0].layer
        self.bounds = bounds
        self._stacked = tuple(stacked)
        self._run = _grouped(experts[0].module)

    def forward(self, portion: Portion, rows_ALD: Tensor) -> Tensor:
        """Each expert's output for its rows: [A, L, ...]. What stands behind an expert's own rows means nothing."""
        with torch.inference_mode():
            return self._run(self._parameters(portion), rows_ALD)

    def gradients(
        self, portion: Portion, rows_ALD: Tensor, output_gradient_ALD: Tensor
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Of the rows [A, L, ...] and of each trained parameter [A, ...]; unchecked, and free to be changed.

        The output gradients of padding must be zero.
        """
        rows_ALD = rows_ALD.detach().requires_grad_()
        parameters = [parameter.detach() for parameter in self._parameters(portion)]
        trained = parameters if self.experts[0].trained else []
        for parameter in trained:
            parameter.requires_grad_()
        of_rows, *found = pull_back(self._run(parameters, rows_ALD), output_gradient_ALD, [rows_ALD, *trained])
        if of_rows is None:
            of_rows = torch.zeros_like(rows_ALD)
        return of_rows, in_own_memory(found, rows_ALD, of_rows, output_gradient_ALD)

    def _parameters(self, portion: Portion) -> list[Tensor]:
        if portion.is_run:
            first, last = portion.positions[0], portion.positions[-1]
            return [stacked[first : last + 1] for stacked in self._stacked]
        index = torch.tensor(portion.positions, device=self.experts[0].device)
        return [stacked.index_select(0, index) for stacked in self._stacked]


def _grouped(module: nn.Module) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """What computes [A, L, ...] rows with parameters [A, ...]; of the module only the structure is used."""
    from torch.func import functional_call, vmap  # here: a node that groups nothing needs nothing of it

    names = [name for name, _ in module.named_parameters()]

    def run_one(parameters: Sequence[Tensor], rows: Tensor) -> Tensor:
        answer: Tensor = functional_call(module, dict(zip(names, parameters, strict=True)), (rows,))
        return answer

    grouped: Callable[[Sequence[Tensor], Tensor], Tensor] = vmap(run_one)
    return grouped


def make_stacked(
    uids: Sequence[ExpertUid], layer: LayerSpec, project: str, device: torch.device
) -> tuple[list[Expert], list[Tensor]]:
    """The experts of these cells as `Expert.create` makes them, and the memory [E, ...] of their parameters."""
    experts: list[Expert] = []
    stacked: list[Tensor] = []
    for position, uid in enumerate(uids):
        module = build_expert(layer, project, uid)
        parameters = list(module.parameters())
        if not stacked:
            stacked = [torch.empty(len(uids), *p.shape, dtype=p.dtype, device=device) for p in parameters]
        for parameter, memory in zip(parameters, stacked, strict=True):
            memory[position].copy_(parameter.data)
            parameter.data = memory[position]
        experts.append(Expert(uid, layer, module, device))
        experts[-1].find_out_if_random()
    return experts, stacked


def try_stack(experts: Sequence[Expert], stacked: Sequence[Tensor], bounds: Bounds) -> ExpertStack | None:
    """A stack of these, when random rows give together what they give one expert at a time; else None."""
    kinds = {expert.kind for expert in experts}
    if len(experts) < 2 or len(kinds) > 1 or not stacked or any(True for _ in experts[0].module.buffers()):
        return None
    if experts[0].is_random:  # each request has a seed of its own
        return None
    try:
        stack = ExpertStack(experts, stacked, bounds)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            agrees = _agrees(stack)
        one_by_one = any(NO_BATCHING_RULE in str(warning.message) for warning in told)
        return stack if agrees and not one_by_one else None
    except Exception:  # noqa: BLE001 - an expert's code, which may be anyone's, may raise anything under vmap
        return None


def _agrees(stack: ExpertStack) -> bool:
    """Forward and backward of two experts, one with fewer rows than the other."""
    device, dtype = stack.experts[0].device, stack.experts[0].dtype
    random = torch.Generator().manual_seed(0)
    portion = Portion(tuple(TRIAL_ROWS), max(TRIAL_ROWS.values()))
    shape = (len(portion.positions), portion.longest, *stack.layer.row_shape)
    rows, gradient = (torch.randn(shape, generator=random, dtype=dtype).to(device) for _ in range(2))
    for position, number in TRIAL_ROWS.items():
        rows[position, number:] = 0
        gradient[position, number:] = 0
    outputs = stack.forward(portion, rows)
    of_rows, of_parameters = stack.gradients(portion, rows, gradient)
    if not torch.isfinite(of_rows).all():
        return False  # padding must not look like a fault
    for position, number in TRIAL_ROWS.items():
        expert = stack.experts[position]
        alone = expert.gradients(rows[position, :number], gradient[position, :number])
        pairs = [
            (outputs[position, :number], expert.forward(rows[position, :number])),
            (of_rows[position, :number], alone.of_rows),
        ]
        for stacked, single in zip(of_parameters, alone.of_parameters, strict=True):
            if (stacked is None) != (single is None):
                return False
            if stacked is not None and single is not None:
                pairs.append((stacked[position], single))
        if not all(_is_near(ours, theirs) for ours, theirs in pairs):
            return False
    return True


def _is_near(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    return float((ours - theirs).abs().max()) <= TOLERANCE[theirs.dtype] * largest if theirs.numel() else True
