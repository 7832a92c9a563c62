"""Rows of a node's runtime on a GPU, from its admission queue on: what it leaves of the device's speed."""

from __future__ import annotations

import torch

from benchmarks.command_line import Options
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work

ARCHITECTURE = "ffn"
BARS = {"forward": 0.5, "forward-backward": 0.4}
REFERENCES = {
    "forward": "one matmul chain of the same FLOPs at the mean rows, same TF32 setting",
    "forward-backward": "the same, with one fused optimizer step per batch",
}
NO_GPU = "no CUDA device here"


def runtime_rows(hidden_size: int, num_experts: int, options: Options, *, tf32: bool) -> list[Comparison | Skipped]:
    """One row forward, one with backward too."""
    rows: list[Comparison | Skipped] = []
    settings = {
        "architecture": ARCHITECTURE,
        "hidden_size": hidden_size,
        "num_experts": num_experts,
        "seed": options.seed,
        "device": "cuda",
        "tf32": tf32,
    }
    ours = SideSpec("ours", "benchmarks.workers.our_runtime", settings)
    chain = SideSpec("matmul chain", "benchmarks.workers.matmul_chain", settings)
    for name, bar_ratio in BARS.items():
        bar = Bar(f"runtime-{num_experts}-experts-{name}", REFERENCES[name], bar_ratio, "s")
        if torch.cuda.is_available():
            work = Work(name=name, budget_s=options.budget_s)
            note = f"TF32 {'on' if tf32 else 'off'} on both sides"
            rows.append(Comparison(bar, Task(ours, work), Task(chain, work), note=note))
        else:
            rows.append(Skipped(bar, NO_GPU))
    return rows
