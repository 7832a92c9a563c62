"""What a network must do with gradients: of the forward's own numbers, right, of everything, clipped per request."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from learning_at_home.errors import LearningAtHomeError
from learning_at_home.tools.checks import Check, failed, ok, warning
from node_agent.conformance.forward_checks import are_near, is_near
from node_agent.conformance.subject import Subject
from node_agent.experts.clipping import gradients_together
from node_agent.experts.expert import Expert
from node_agent.experts.networks import Leaves
from node_agent.experts.portions import Bounds
from node_agent.experts.pullback import pull_back_all
from node_agent.experts.stacks import make_stacked, try_stack
from node_agent.runtime.computation import compute

DIFFERENCE = 1e-6  # of the rows, for a derivative by two forwards in float64
DERIVATIVE_TOLERANCE = 1e-4
REQUEST_SIZES = (1, 3, 2)


def check_recomputation(subject: Subject) -> Check:
    """Backward computes forward again, perhaps much later: it must meet the same numbers."""
    name, rows, gradients = "recomputation", subject.draw(4), subject.draw_gradients(4)
    expert = subject.expert()
    answered = subject.forward(expert, rows)
    torch.manual_seed(5)
    leaves = subject.on_device(rows, asking=True)
    recorded = subject.run(expert, leaves, seeded_by=rows)
    if not are_near([output.detach().cpu() for output in recorded], answered):
        fix = "let forward do the same with and without autograd, and draw from torch's default generator only"
        return failed(name, "a forward for a backward gives other numbers than a plain one", fix)
    asking = [leaf for leaf in leaves if leaf.requires_grad]
    found = pull_back_all(recorded, subject.on_device(gradients), asking)
    remembered = [
        torch.zeros_like(leaf).cpu() if of_leaf is None else of_leaf.cpu()
        for leaf, of_leaf in zip(asking, found, strict=True)
    ]
    if not are_near(subject.gradients(expert, rows, gradients), remembered):
        return failed(name, "two backwards of one request give other gradients", "keep nothing from forward to forward")
    return ok(name, "a forward that is computed again gives the same")


def check_gradients(subject: Subject) -> Check:
    """Finite, of every input and every parameter."""
    name, rows, expert = "gradients", subject.draw(8), subject.expert()
    leaves = subject.on_device(rows, asking=True)
    answer = subject.run(expert, leaves, seeded_by=rows)
    detached = [leaf.path for leaf, out in zip(subject.layer.outputs, answer, strict=True) if not out.requires_grad]
    if detached:
        which = "the output does" if subject.layer.schema is None else f"output {detached[0]} does"
        return failed(name, f"{which} not depend on the rows", "return what was computed, without .detach()")
    asking = {
        "the rows" if subject.layer.schema is None else f"input {spec.path}": leaf
        for spec, leaf in zip(subject.layer.inputs, leaves, strict=True)
        if leaf.requires_grad
    }
    named = dict(expert.module.named_parameters())
    found: list[Tensor | None] = []
    total = torch.stack([output.square().sum() for output in answer]).sum()
    found += torch.autograd.grad(total, [*asking.values(), *named.values()], allow_unused=True)
    for which, of_leaf in zip(asking, found, strict=False):
        if of_leaf is None or not (of_leaf != 0).any():
            gets = "get" if subject.layer.schema is None else "gets"
            fix = "layers before this one would learn nothing: add the rows, too"
            return failed(name, f"{which} {gets} no gradient", fix)
    of_all = dict(zip([*asking, *named], found, strict=True))
    infinite = [key for key, value in of_all.items() if value is not None and not torch.isfinite(value).all()]
    if infinite:
        return failed(name, f"the gradient of {infinite[0]} is not finite", "look for a division or a root at zero")
    without = [key for key, value in of_all.items() if value is None]
    if without:
        fix = "use it in forward, or make it a constant buffer; it costs memory on every node"
        return warning(name, f"{', '.join(without[:3])} got none", fix)
    silent = sum(
        int((of_leaf.abs().reshape(len(of_leaf), -1).sum(0) == 0).sum())
        for of_leaf in found[: len(asking)]
        if of_leaf is not None
    )
    if silent:
        return warning(name, f"{silent} of the features get none", "is a part of each row meant to be ignored?")
    return ok(name, f"finite, of {', '.join(asking) or 'no input'} and of {len(named)} parameters")


def check_derivative(subject: Subject) -> Check:
    """The gradient is that of the output, by two forwards in float64: mistakes in autograd functions show here."""
    name = "derivative"
    double = Subject(msgspec.structs.replace(subject.layer, dtype="float64"), subject.device)
    rows, direction, gradients = double.draw(3), double.draw(3, seed=1), double.draw_gradients(3, seed=2)
    expert = double.expert()

    def forward(step: float) -> Leaves:
        moved = [
            leaf + step * along if leaf.is_floating_point() else leaf
            for leaf, along in zip(rows, direction, strict=True)
        ]
        return double.forward(expert, tuple(moved), seeded_by=rows)

    more, less = forward(DIFFERENCE), forward(-DIFFERENCE)
    changes = [
        float(((above - below) * gradient).sum()) for above, below, gradient in zip(more, less, gradients, strict=True)
    ]
    by_forwards = sum(changes) / (2 * DIFFERENCE)
    of_rows = double.gradients(expert, rows, gradients)
    along = [way for way in direction if way.is_floating_point()]
    by_backward = sum(float((of_leaf * way).sum()) for of_leaf, way in zip(of_rows, along, strict=True))
    size = max([abs(by_forwards), 1e-12, *(float(of_leaf.norm()) for of_leaf in of_rows)])
    if abs(by_forwards - by_backward) > DERIVATIVE_TOLERANCE * size:
        fix = "look at your own autograd functions, and at detach() and no_grad() in forward"
        return failed(name, f"backward says {by_backward:.6g}, two forwards say {by_forwards:.6g}", fix)
    return ok(name, "backward agrees with two forwards")


def check_clipping(subject: Subject) -> Check:
    """Requests of one batch, each clipped by itself: as one by one in plain torch."""
    name, clip_norm = "clipping", subject.layer.optimizer.clip_norm
    assert clip_norm is not None, "the layer of a check clips"
    requests = [
        (subject.draw(n, seed=n), tuple([gradient * 10.0**n for gradient in subject.draw_gradients(n, seed=10 + n)]))
        for n in REQUEST_SIZES
    ]
    expert, local = subject.expert(), subject.expert()
    outcomes = compute(expert, "backward", [(*rows, *gradients) for rows, gradients in requests])
    if problem := next((outcome for outcome in outcomes if isinstance(outcome, LearningAtHomeError)), None):
        return failed(name, str(problem), "see the checks above")
    total = [torch.zeros_like(parameter) for parameter in local.module.parameters()]
    for rows, gradients in requests:
        local.module.zero_grad()
        outputs = subject.run(local, subject.on_device(rows, asking=True), seeded_by=rows)
        torch.autograd.backward(outputs, subject.on_device(gradients))
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
    if subject.layer.schema is not None:
        return "one request at a time (slower): it takes several tensors"
    (rows,) = subject.on_device(subject.draw(sum(REQUEST_SIZES)))
    together = gradients_together(expert, rows, rows, REQUEST_SIZES)
    return "one request at a time (slower)" if together is None else "in one backward of all"


def check_grouping(subject: Subject) -> Check:
    """Whether a GPU may compute many of these as one product; no fault where not."""
    name = "grouping"
    if subject.layer.schema is not None:
        return ok(name, "computed one at a time also on a GPU: it takes several tensors")
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
