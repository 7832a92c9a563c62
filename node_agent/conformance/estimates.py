"""What a network takes: memory, flop; and whether its state survives being bytes."""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from learning_at_home.project import OptimizerSpec
from learning_at_home.tools.checks import Check, failed, ok, warning
from node_agent.conformance.subject import Subject
from node_agent.experts.architectures import flop_per_row, weight_bytes
from node_agent.experts.memory import measure
from node_agent.experts.networks import run_network
from node_agent.experts.sizes import shown

FLOP_TOLERANCE = 1.5  # times more or less than what was declared


def check_checkpoint(subject: Subject) -> Check:
    """state_dict to plain bytes and back: names, dtypes, shapes and numbers, without any pickle."""
    name, source = "checkpoint", subject.module()
    state = source.state_dict()
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        return failed(name, f"{strange[0]} in its state is no tensor", "keep only tensors in state_dict")
    memory = [value.untyped_storage().data_ptr() for value in state.values() if value.numel()]
    if len(set(memory)) < len(memory):
        fix = "give each name a tensor of its own; a checkpoint keeps no ties between them"
        return failed(name, "two names of its state share memory", fix)
    written = {key: (str(value.dtype), list(value.shape), _to_bytes(value)) for key, value in state.items()}
    read = {key: _from_bytes(*msgspec.msgpack.decode(msgspec.msgpack.encode(part))) for key, part in written.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        target = subject.module()
        for parameter in target.parameters():
            torch.nn.init.normal_(parameter)
    target.load_state_dict(read)
    for key, value in target.state_dict().items():
        if not torch.equal(value, state[key]):
            return failed(name, f"{key} came back otherwise", "let load_state_dict take what state_dict gives")
    return ok(
        name, f"{shown(sum(len(part[2]) for part in written.values()))} in {len(written)} tensors, there and back"
    )


def check_memory(subject: Subject) -> Check:
    """An estimate, as a node makes it before it takes experts."""
    layer = msgspec.structs.replace(subject.layer, optimizer=OptimizerSpec())
    memory = measure(layer, layer.max_rows)
    seen = (
        f"{shown(weight_bytes(layer))} of weights, {shown(memory.lasting_bytes)} with Adam's state; "
        f"{shown(memory.passing_bytes)} while {layer.max_rows:,} rows are computed"
    )
    return ok("memory", seen)


def check_flop(subject: Subject) -> Check:
    """What is declared for a row, or estimated from the parameters, against what torch counts."""
    name, declared = "flop", flop_per_row(subject.layer)
    module, rows = subject.module(), subject.draw(2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_network(subject.layer.architecture, subject.layer, module, rows)
    counted = counter.get_total_flops() // 2
    seen = f"{declared:,} per row and forward; torch counts {counted:,} in products"
    if counted and not counted / FLOP_TOLERANCE <= declared <= counted * FLOP_TOLERANCE:
        fix = f"give register_expert a flop_per_row that says about {counted:,}: nodes plan by it, credit counts it"
        return warning(name, seen, fix)
    return ok(name, seen)


def _to_bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def _from_bytes(dtype: str, shape: list[int], data: bytes) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype.removeprefix("torch."))
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(kind).reshape(shape)
