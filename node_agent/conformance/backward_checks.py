"""What a network must do with gradients: of the forward's own numbers, right, of everything, clipped per request."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from learning_at_home.tools.checks import Check, failed, ok, warning
from node_agent.conformance.forward_checks import is_near
from node_agent.conformance.subject import Subject
from node_agent.experts.clipping import gradients_together
from node_agent.experts.expert import Expert
from node_agent.experts.portions import Bounds
from node_agent.experts.stacks import make_stacked, try_stack
from node_agent.runtime.computation import compute

DIFFERENCE = 1e-6  # of the rows, for a derivative by two forwards in float64
DERIVATIVE_TOLERANCE = 1e-4
REQUEST_SIZES = (1, 3, 2)


def check_recomputation(subject: Subject) -> Check:
    """Backward computes forward again, perhaps much later: it must meet the same numbers."""
    name, rows, gradient = "recomputation", subject.draw(4), subject.draw(4, seed=1)
    expert = subject.expert()
    with expert.numbers_for(rows):
        answered = expert.forward(rows.to(subject.device)).cpu()
    torch.manual_seed(5)
    leaf = rows.to(subject.device).requires_grad_()
    with expert.numbers_for(rows):
        recorded = expert.module(leaf)
    if not is_near(recorded.detach().cpu(), answered):
        fix = "let forward do the same with and without autograd, and draw from torch's default generator only"
        return failed(name, "a forward for a backward gives other numbers than a plain one", fix)
    remembered = torch.autograd.grad(recorded, leaf, gradient.to(subject.device))[0].cpu()
    with expert.numbers_for(rows):
        again = expert.gradients(rows.to(subject.device), gradient.to(subject.device)).of_rows.cpu()
    if not is_near(again, remembered):
        return failed(name, "two backwards of one request give other gradients", "keep nothing from forward to forward")
    return ok(name, "a forward that is computed again gives the same")


def check_gradients(subject: Subject) -> Check:
    """Finite, of every input and every parameter."""
    name, rows, expert = "gradients", subject.draw(8), subject.expert()
    leaf = rows.to(subject.device).requires_grad_()
    with expert.numbers_for(rows):
        answer = expert.module(leaf)
    if not answer.requires_grad:
        return failed(name, "the output does not depend on the rows", "return what was computed, without .detach()")
    named = dict(expert.module.named_parameters())
    found: list[Tensor | None] = []
    found += torch.autograd.grad(answer.square().sum(), [leaf, *named.values()], allow_unused=True)
    of_rows = found[0]
    if of_rows is None or not (of_rows != 0).any():
        return failed(name, "the rows get no gradient", "layers before this one would learn nothing: add the rows, too")
    of_all = dict(zip(["the rows", *named], found, strict=True))
    infinite = [key for key, value in of_all.items() if value is not None and not torch.isfinite(value).all()]
    if infinite:
        return failed(name, f"the gradient of {infinite[0]} is not finite", "look for a division or a root at zero")
    without = [key for key, value in of_all.items() if value is None]
    if without:
        fix = "use it in forward, or make it a constant buffer; it costs memory on every node"
        return warning(name, f"{', '.join(without[:3])} got none", fix)
    silent = int((of_rows.abs().flatten(1).sum(0) == 0).sum())
    if silent:
        return warning(name, f"{silent} of the features get none", "is a part of each row meant to be ignored?")
    return ok(name, f"finite, of the rows and of {len(named)} parameters")


def check_derivative(subject: Subject) -> Check:
    """The gradient is that of the output, by two forwards in float64: mistakes in autograd functions show here."""
    name = "derivative"
    double = Subject(msgspec.structs.replace(subject.layer, dtype="float64"), subject.device)
    rows, direction, gradient = double.draw(3), double.draw(3, seed=1), double.draw(3, seed=2)
    expert = double.expert()

    def forward(moved: Tensor) -> Tensor:
        with expert.numbers_for(rows):
            return expert.forward(moved.to(subject.device)).cpu()

    step = DIFFERENCE * direction
    by_forwards = float(((forward(rows + step) - forward(rows - step)) * gradient).sum()) / (2 * DIFFERENCE)
    with expert.numbers_for(rows):
        of_rows = expert.gradients(rows.to(subject.device), gradient.to(subject.device)).of_rows.cpu()
    by_backward = float((of_rows * direction).sum())
    size = max(abs(by_forwards), float(of_rows.norm()), 1e-12)
    if abs(by_forwards - by_backward) > DERIVATIVE_TOLERANCE * size:
        fix = "look at your own autograd functions, and at detach() and no_grad() in forward"
        return failed(name, f"backward says {by_backward:.6g}, two forwards say {by_forwards:.6g}", fix)
    return ok(name, "backward agrees with two forwards")


def check_clipping(subject: Subject) -> Check:
    """Requests of one batch, each clipped by itself: as one by one in plain torch."""
    name, clip_norm = "clipping", subject.layer.optimizer.clip_norm
    assert clip_norm is not None, "the layer of a check clips"
    requests = [(subject.draw(n, seed=n), subject.draw(n, seed=10 + n) * 10.0**n) for n in REQUEST_SIZES]
    expert, local = subject.expert(), subject.expert()
    outcomes = compute(expert, "backward", requests)
    if problem := next((outcome for outcome in outcomes if not isinstance(outcome, Tensor)), None):
        return failed(name, str(problem), "see the checks above")
    total = [torch.zeros_like(parameter) for parameter in local.module.parameters()]
    for rows, gradient in requests:
        local.module.zero_grad()
        with local.numbers_for(rows):
            output = local.module(rows.to(subject.device).requires_grad_())
        output.backward(gradient.to(subject.device))
        nn.utils.clip_grad_norm_(local.module.parameters(), clip_norm)
        for whole, parameter in zip(total, local.module.parameters(), strict=True):
            if parameter.grad is not None:
                whole += parameter.grad
    rate = subject.layer.optimizer.learning_rate
    with torch.no_grad():
        for whole, parameter in zip(total, local.module.parameters(), strict=True):
            parameter.sub_(whole, alpha=rate)
    pairs = zip(expert.module.parameters(), local.module.parameters(), strict=True)
    if not all(is_near(ours.detach(), theirs.detach()) for ours, theirs in pairs):
        fix = "please report it: a node would not clip this network as it should"
        return failed(name, "requests of one batch are clipped otherwise than one by one", fix)
    return ok(name, f"per request, {_way_of_clipping(subject)}")


def _way_of_clipping(subject: Subject) -> str:
    expert = subject.expert()
    if expert.is_random:
        return "one request at a time: it draws random numbers"
    rows = subject.draw(sum(REQUEST_SIZES)).to(subject.device)
    together = gradients_together(expert, rows, rows, REQUEST_SIZES)
    return "one request at a time (slower)" if together is None else "in one backward of all"


def check_grouping(subject: Subject) -> Check:
    """Whether a GPU may compute many of these as one product; no fault where not."""
    name = "grouping"
    uids = [subject.layer.cells.uid(subject.layer.prefix, cell) for cell in range(2)]
    experts, stacked = make_stacked(uids, subject.layer, "check", subject.device)
    if try_stack(experts, stacked, Bounds(experts=2, rows=1 << 20)) is not None:
        return ok(name, "many of these can be one product on a GPU")
    return ok(name, f"computed one at a time also on a GPU: {_why_alone(experts[0])}")


def _why_alone(expert: Expert) -> str:
    if expert.is_random:
        return "it draws random numbers"
    if any(True for _ in expert.module.buffers()):
        return "it has buffers"
    return "torch.func.vmap cannot run it, or runs it otherwise"
