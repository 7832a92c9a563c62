"""hivemind's remote experts: the client here, its server in a process of its own. Runs in the rivals' environment.

Driven like our own workers; says the same things.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

import torch
from hivemind import DHT
from hivemind.moe import get_experts
from torch import Tensor

from benchmarks.rivals.hivemind_modules import build
from benchmarks.worker import Work, calls_per_second_of_threads, seconds_per_call, serve, settings_of


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    seed: int
    num_handlers: int = 2  # of 1, 2, 4 and 8 the best on two cores, by a little


class HivemindExperts:
    """One expert on a server, and the client that calls it."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._settings = settings
        self._uid = "expert.0"
        self._server = start_server({**asdict(settings), "uids": [self._uid]})
        assert self._server.stdout is not None
        peers = json.loads(self._server.stdout.readline())
        self._dht = DHT(initial_peers=peers, start=True, client_mode=True, use_relay=False, use_auto_relay=False)
        (expert,) = get_experts(self._dht, [self._uid])
        assert expert is not None, "the server's expert is not in the DHT"
        self._expert = expert

    def check(self) -> None:
        """Its output, and the gradient of its input, before it has stepped."""
        module = build(self._settings.architecture, self._settings.hidden_size)
        rows, gradient = self._rows(64).requires_grad_(), self._rows(64)
        answer, plain = self._expert(rows), module(rows)
        found, wanted = (torch.autograd.grad(y, rows, gradient)[0] for y in (answer, plain))
        assert torch.allclose(answer, plain, rtol=1e-3, atol=1e-4), "the output differs from plain torch"
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4), "the gradient differs from plain torch"

    def ready(self) -> None:
        """Its connections outlive a stop."""

    def measure(self, work: Work) -> float:
        rows = self._rows(work.rows)
        if work.name == "forward":
            return seconds_per_call(lambda: self._expert(rows), work)
        if work.name == "threads":
            return calls_per_second_of_threads(lambda: self._expert(rows), work)
        if work.name == "forward-backward":
            gradient = self._rows(work.rows)
            rows.requires_grad_()
            return seconds_per_call(lambda: self._expert(rows).backward(gradient), work)
        raise ValueError(f"no such work: {work.name}")

    def close(self) -> None:
        self._dht.shutdown()
        self._server.kill()
        self._server.wait()

    def _rows(self, count: int) -> Tensor:
        return torch.randn(count, self._settings.hidden_size)


def start_server(settings: dict[str, object]) -> subprocess.Popen[str]:
    """A server process; its first line of output is the list of its addresses."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rivals.hivemind_server", json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    serve(lambda: HivemindExperts(settings_of(Settings)))
