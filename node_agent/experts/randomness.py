"""Random numbers that follow from a seed: an expert's first weights, and what its network draws for a request.

A network with dropout must draw the same numbers for a request's forward and for its recomputation on backward, which
may come much later and to a node that has computed others meanwhile. So both draw from torch's generator with one seed,
made of the expert's name and the request's rows, bit for bit: nothing need be remembered or sent, and a backward that
comes again draws them too. Rows that are sent again unchanged meet the same mask again.

Such experts compute one request at a time: in a batch a request's numbers would depend on who else called.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

_ONE_AT_A_TIME = threading.RLock()  # torch's modules draw from one generator of the whole process
_drawing_kinds: dict[object, bool] = {}


@contextlib.contextmanager
def numbers_from(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's CPU generator, and that of a GPU, seeded, for one thread at a time.

    Afterwards they go on where they were. Only these: torch.manual_seed would also seed every other GPU's.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with _ONE_AT_A_TIME:
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def seed_of(uid: str, *rows: Tensor) -> int:
    """Of a request's inputs, which lie on the CPU."""
    digest = hashlib.blake2b(uid.encode(), digest_size=8)
    for tensor in rows:
        digest.update(tensor.detach().contiguous().numpy().data.cast("B"))
    return int.from_bytes(digest.digest(), "big") >> 1


def has_dropout(module: nn.Module) -> bool:
    """Whether a part of the network is one of torch's dropouts that drops anything."""
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in module.modules())


def draws_numbers(module: nn.Module, kind: object, forward: Callable[[], object], device: torch.device) -> bool:
    """Whether a forward of the module draws from torch's generators; tried once for a `kind` of network."""
    if kind not in _drawing_kinds:
        _drawing_kinds[kind] = has_dropout(module) or _draws(forward, device)
    return _drawing_kinds[kind]


def _draws(forward: Callable[[], object], device: torch.device) -> bool:
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with numbers_from(0, device), torch.no_grad():
        before = [generator.get_state() for generator in generators]
        try:
            forward()
        except Exception:  # noqa: BLE001 - anyone's code; what it cannot compute, its callers will be told
            return False
        return not all(map(torch.equal, before, (generator.get_state() for generator in generators)))
