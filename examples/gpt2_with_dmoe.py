"""A GPT-2 that is not ours, with a mixture from the swarm in it: `python gpt2_with_dmoe.py URL [STEPS]`.

Needs `pip install transformers`, downloads nothing, and runs on any project with a layer `ffn0` of 64 features, as
`make demo` has. A tiny, randomly initialised GPT-2 learns the bytes of the standard library's sources three times, from
the same weights and on the same batches: with the feed-forward block of its second layer frozen, with that block as it
is, and with a DMoE in its place. It shows that a mixture fits in and learns; it is no comparison at equal size, since
16 experts of 100,000 weights, four for each row, stand against 33,000, and messages cost time. One run on a fresh
swarm, two nodes on two cores, 300 steps: 3.45, 3.38 and 3.25 bits per byte, the last in four times the block's time.
"""

import math
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import learning_at_home as lah

LENGTH, BATCH = 64, 16  # bytes per sequence, sequences per step: a step sends 1,024 rows to the experts
BLOCKS = ("its own, frozen", "its own", "a DMoE")


def read_bytes() -> tuple[Tensor, Tensor]:
    """The standard library's modules as bytes [N]: nine tenths to learn from, one to test on."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    text = torch.frombuffer(bytearray(sources), dtype=torch.uint8).long()
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def build_model(block: str, swarm: lah.Swarm) -> GPT2LMHeadModel:
    """A GPT-2 over bytes with the same weights each time, and one of BLOCKS in its second layer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=None, eos_token_id=None))
    layer = model.transformer.h[1]
    if block == "its own, frozen":
        layer.mlp.requires_grad_(False)
    if block == "a DMoE":
        layer.mlp = lah.DMoE(swarm, layer="ffn0", k_best=4)  # [batch, length, 64] in and out, as the block
    return model


def loss_on(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """Mean cross entropy, in bits per byte, of each next byte of the sequences that begin at `starts` [R]."""
    rows = text[starts[:, None] + torch.arange(LENGTH + 1)]
    scores = model(rows[:, :-1]).logits
    return nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()) / math.log(2)


def train(model: nn.Module, text: Tensor, steps: int, swarm: lah.Swarm) -> None:
    """Adam on what is local and learns, warmed up and cooled down; the experts apply their own steps on their hosts."""
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad])
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    for step in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=random)
        loss = loss_on(model, text, starts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        swarm.report(step, loss=loss)


@torch.no_grad()  # nothing learns here: a call without autograd never trains an expert
def loss_on_unseen(model: nn.Module, text: Tensor) -> float:
    """Bits per byte of 256 sequences, the same ones each time, from all over the text that was not learned from."""
    starts = torch.linspace(0, len(text) - LENGTH - 1, 256).long()
    return sum(loss_on(model, text, part).item() for part in starts.split(64)) / 4


def main(url: str, steps: int) -> None:
    torch.set_num_threads(1)  # the nodes of a local swarm need this machine's cores, too
    text, unseen = read_bytes()
    print(f"{len(text):,} bytes to learn from, {steps} steps of {BATCH * LENGTH:,} bytes")
    print("second block         local weights  seconds  bits per byte, unseen")
    for block in BLOCKS:
        with lah.Swarm.connect(url, run=f"GPT-2 with {block}") as swarm:  # a curve of its own on the dashboard
            swarm.wait_until_alive("ffn0", num_experts=4)
            model = build_model(block, swarm)
            learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            started = time.monotonic()
            train(model, text, steps, swarm)
            seconds = time.monotonic() - started
            print(f"{block:<20} {learning:>13,} {seconds:>8.1f} {loss_on_unseen(model, unseen):>22.3f}", flush=True)
            if block == "a DMoE":
                print(swarm.stats().failures, "of", swarm.stats().calls, "calls to experts failed")
                print(f"sample: {sample(model, b'def ')!r}")


def sample(model: GPT2LMHeadModel, start: bytes) -> str:
    """`start`, and what the model writes after it: transformers' own generation, which calls the experts per byte."""
    given = torch.tensor([list(start)])
    written = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=LENGTH - len(start),
        do_sample=True,
        temperature=0.7,
        pad_token_id=0,
    )
    return bytes(written[0].tolist()).decode("utf-8", "replace")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 300)
