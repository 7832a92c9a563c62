"""hivemind's mixture of experts: the client here, its server in a process of its own. Runs in the rivals' environment.

All experts start from the same weights, so that the output is that of one expert, whichever the gate chooses.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

import torch
from hivemind import DHT
from hivemind.moe import RemoteMixtureOfExperts, get_experts

from benchmarks.mixture_step import Step
from benchmarks.rivals.hivemind_experts import start_server
from benchmarks.rivals.hivemind_modules import build
from benchmarks.worker import Work, seconds_per_call, serve, settings_of

PREFIX = "expert"
DECLARED_WITHIN_S = 30.0
CHECKED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    grid: list[int]
    k_best: int
    seed: int
    num_handlers: int


class HivemindMixture:
    """All experts on one server (four would be four times the processes), and the client's layer."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(settings.seed)
        self._settings = settings
        width, height = settings.grid
        uids = [f"{PREFIX}.{row}.{column}" for row in range(width) for column in range(height)]
        self._server = start_server({**asdict(settings), "uids": uids})
        assert self._server.stdout is not None
        peers = json.loads(self._server.stdout.readline())
        self._dht = DHT(initial_peers=peers, start=True, client_mode=True, use_relay=False, use_auto_relay=False)
        deadline = time.monotonic() + DECLARED_WITHIN_S
        while not all(get_experts(self._dht, uids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._layer = RemoteMixtureOfExperts(
            in_features=settings.hidden_size,
            grid_size=(width, height),
            dht=self._dht,
            uid_prefix=f"{PREFIX}.",
            k_best=settings.k_best,
            k_min=settings.k_best,
            backward_k_min=settings.k_best,
        )

    def check(self) -> None:
        """Its output; and the gradient of one row, since a second row would meet experts that have stepped."""
        module = build(self._settings.architecture, self._settings.hidden_size)
        x = torch.randn(CHECKED_ROWS, self._settings.hidden_size)
        assert torch.allclose(self._layer(x), module(x), rtol=1e-3, atol=1e-4), "the output differs from plain torch"
        step = Step.random(1, self._settings.hidden_size)
        ours, plain = step.run(self._layer)[1], step.run(module)[1]
        assert torch.allclose(ours, plain, rtol=1e-3, atol=1e-4), "the gradient differs from plain torch"

    def ready(self) -> None:
        """Its connections outlive a stop."""

    def measure(self, work: Work) -> float:
        step = Step.random(work.rows, self._settings.hidden_size)
        return seconds_per_call(lambda: step.run(self._layer), work)

    def close(self) -> None:
        self._dht.shutdown()
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    serve(lambda: HivemindMixture(settings_of(Settings)))
