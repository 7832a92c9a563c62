"""Rows about a node as a whole: how soon its experts answer, and how much memory they take."""

from __future__ import annotations

from benchmarks.command_line import Options
from benchmarks.pairs import Comparison, Skipped, Task
from benchmarks.projects import PREFIX, project_of
from benchmarks.rivals import environment
from benchmarks.rows import Bar
from benchmarks.sides import SideSpec
from benchmarks.worker import Work
from node_agent.experts.architectures import weight_bytes

ARCHITECTURE = "ffn"
READY_LIMITS_S = (3.0, 15.0)  # of the smaller and of the larger node
COPIES = 4  # weights, gradients and Adam's two moments
MEMORY_FACTOR = 1.5
MEMORY_REST_BYTES = 400e6  # the interpreter and torch


def node_rows(hidden_size: int, experts: tuple[int, int], options: Options) -> list[Comparison | Skipped]:
    """Two nodes started, and the larger one's memory. --quick starts the smaller one only."""
    rows: list[Comparison | Skipped] = []
    for num_experts, limit_s in zip(experts, READY_LIMITS_S, strict=True):
        bar = Bar(f"node-{num_experts}-experts-ready", f"limit {limit_s:g} s", 1, "s")
        side = SideSpec("ours", "benchmarks.workers.our_node", _of(hidden_size, num_experts, options))
        rows.append(Comparison(bar, Task(side, Work(name="ready")), limit_s))
    most = experts[1]
    layer = project_of(ARCHITECTURE, hidden_size, (most,)).layer(PREFIX)
    limit_bytes = MEMORY_FACTOR * COPIES * weight_bytes(layer) * most + MEMORY_REST_BYTES
    bar = Bar(f"node-{most}-experts-memory", "limit 1.5 x (weights + gradients + optimizer state) + 400 MB", 1, "bytes")
    side = SideSpec("ours", "benchmarks.workers.our_experts", _of(hidden_size, most, options))
    rows.append(Comparison(bar, Task(side, Work(name="memory")), limit_bytes, once=True))
    if options.quick:
        return [rows[0], *(Skipped(row.bar, environment.BY_QUICK) for row in rows[1:])]
    return rows


def _of(hidden_size: int, num_experts: int, options: Options) -> dict[str, object]:
    return {
        "architecture": ARCHITECTURE,
        "hidden_size": hidden_size,
        "num_experts": num_experts,
        "seed": options.seed,
    }
