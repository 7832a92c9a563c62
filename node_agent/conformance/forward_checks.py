"""What a network must do with rows: the right shapes, every time the same, each row by itself. Pure but for torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learning_at_home.errors import SpecMismatch
from learning_at_home.tensors.frames import DTYPES
from learning_at_home.tools.checks import Check, failed, ok
from node_agent.conformance.subject import Subject
from node_agent.experts.networks import Leaves

ROW_COUNTS = (1, 2, 3, 7, 64)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest number


def check_weights(subject: Subject) -> Check:
    """The same weights on every machine, floating-point and at least one."""
    name = "weights"
    torch.manual_seed(1)
    first = subject.module()
    torch.manual_seed(2)
    second = subject.module()
    parameters = dict(first.named_parameters())
    if not parameters:
        return failed(name, "there is no parameter", "give it at least one; a node finds dtype and device by it")
    different = [key for key, parameter in second.named_parameters() if not torch.equal(parameter, parameters[key])]
    if different:
        fix = "draw first weights with torch alone, on the CPU: its generator is seeded by project and uid"
        return failed(name, f"two machines would begin with different numbers in {different[0]}", fix)
    other = [key for key, parameter in parameters.items() if parameter.dtype != DTYPES[subject.layer.dtype]]
    if other:
        fix = "leave the dtype to torch's default; the node casts the network to the layer's"
        return failed(name, f"{other[0]} is {parameters[other[0]].dtype}", fix)
    return ok(name, f"{sum(p.numel() for p in parameters.values()):,} in {len(parameters)} tensors, same everywhere")


def check_shapes(subject: Subject) -> Check:
    """Rows in, rows of the same shape and dtype out, for several numbers of rows."""
    name, expert, several = "shapes", subject.expert(), subject.layer.schema
    for number in ROW_COUNTS:
        rows = subject.on_device(subject.draw(number))
        try:
            answer = subject.run(expert, rows)
        except SpecMismatch as error:
            fix = "return what the schema says" if several else "return one tensor like the rows; a Linear at the end"
            return failed(name, error.message, fix if several else f"{fix} brings back the width")
        if not all(torch.isfinite(output).all() for output in answer):
            return failed(
                name, f"{number} normal rows gave NaN or infinity", "normalise, or begin with smaller weights"
            )
    return ok(name, f"{', '.join(map(str, ROW_COUNTS))} rows of {several or list(subject.layer.row_shape)}")


def check_input_is_left_alone(subject: Subject) -> Check:
    name, rows = "input", subject.draw(3)
    given = subject.on_device(rows)
    with torch.no_grad():
        subject.run(subject.expert(), given)
    if not all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(given, rows, strict=True)):
        return failed(name, "forward writes to its input", "use the forms of operations without `_`, or clone first")
    return ok(name, "is left as it is")


def check_determinism(subject: Subject) -> Check:
    """The same request, the same answer."""
    name, expert, rows = "determinism", subject.expert(), subject.draw(5)
    first = subject.forward(expert, rows)
    subject.forward(expert, subject.draw(4, seed=1))
    torch.manual_seed(3)
    if not _are_equal(first, subject.forward(expert, rows)):
        fix = "keep nothing from one forward for the next, and draw random numbers from torch's default generator only"
        return failed(name, "the same rows gave another answer the second time", fix)
    if not _are_equal(first, subject.forward(subject.expert(), rows)):
        return failed(name, "another node would answer something else", "let weights and rows alone decide the answer")
    random = "; it draws random numbers, seeded by each request's rows" if expert.is_random else ""
    return ok(name, f"the same rows give the same answer{random}")


def check_state(subject: Subject) -> Check:
    """Only the optimizer changes an expert."""
    name, expert, rows = "state", subject.expert(), subject.draw(5)
    before = {key: value.clone() for key, value in expert.module.state_dict().items()}
    subject.forward(expert, rows)
    subject.gradients(expert, rows, subject.draw_gradients(5))
    after = expert.module.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    if changed:
        fix = "no running statistics: LayerNorm or GroupNorm in place of BatchNorm; buffers must be constants"
        return failed(name, f"computing changes {changed[0]}", fix)
    return ok(name, "computing changes nothing")


def check_independence(subject: Subject) -> Check:
    """No row depends on another: those of several callers are computed together."""
    name, expert, rows = "rows", subject.expert(), subject.draw(5)
    fix = "let no operation cross the first dimension: LayerNorm in place of BatchNorm, no mean over the batch"
    asking = subject.on_device(rows, asking=True)
    one_row = torch.stack([output[1].sum() for output in subject.run(expert, asking, seeded_by=rows)]).sum()
    if one_row.requires_grad:
        one_row.backward()
    others = [0, 2, 3, 4]
    if any(leaf.grad is not None and bool((leaf.grad[others] != 0).any()) for leaf in asking):
        return failed(name, "the output of one row depends on the rows beside it", fix)
    if expert.is_random:
        return ok(name, "do not depend on each other; a request is computed alone, as it draws random numbers")
    spoilt = tuple([leaf.clone() for leaf in rows])
    for leaf in spoilt:
        if leaf.is_floating_point():
            leaf[others] = torch.nan
    alone = subject.forward(expert, tuple([leaf[1:2] for leaf in rows]))
    for beside in (rows, spoilt):
        if not are_near([output[1:2] for output in subject.forward(expert, beside)], alone):
            return failed(name, "a row gets another output alone than beside others", fix)
    return ok(name, "do not depend on each other")


def is_near(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for rounding."""
    if not torch.isfinite(ours).all():
        return False
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    return float((ours - theirs).abs().max()) <= TOLERANCE[theirs.dtype] * max(largest, 1e-30)


def are_near(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """The same of several."""
    return all(map(is_near, ours, theirs))


def _are_equal(ours: Leaves, theirs: Leaves) -> bool:
    return all(map(torch.equal, ours, theirs))
