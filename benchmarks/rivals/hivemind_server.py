"""A hivemind server in a process of its own. Its first line of output is its addresses; it ends with its stdin."""

from __future__ import annotations

import functools
import json
import os
import sys

import torch
from hivemind.moe import Server

from benchmarks.rivals.hivemind_modules import register

LEARNING_RATE = 1e-3
CLIP_NORM = 1.0  # both as in our projects


def main() -> None:
    """Serve until stdin ends."""
    settings = json.loads(sys.argv[1])
    addresses = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    has_weights = settings["architecture"] != "nop"
    server = Server.create(
        expert_uids=settings["uids"],
        expert_cls=register(settings["architecture"]),
        hidden_dim=settings["hidden_size"],
        optim_cls=functools.partial(torch.optim.Adam, lr=LEARNING_RATE, fused=True) if has_weights else None,
        clip_grad_norm=CLIP_NORM if has_weights else None,
        num_handlers=settings["num_handlers"],
        device="cpu",
        use_relay=False,
        use_auto_relay=False,
        start=True,
    )
    addresses.write(json.dumps([str(address) for address in server.dht.get_visible_maddrs()]) + "\n")
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
