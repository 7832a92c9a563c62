"""A node from its start until every one of its experts has answered a trainer. Run by benchmarks.sides."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.projects import PREFIX, project_of
from benchmarks.worker import Work, serve, settings_of
from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.client.swarm import Swarm
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.identity import Identity
from node_agent.testing.project_files import project_toml

HOST = "127.0.0.1"
DHT_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    num_experts: int
    seed: int


class OurNode:
    """Starts a new swarm of one node for every measurement: what is known of an earlier one would help."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._settings = settings
        self._project = project_of(settings.architecture, settings.hidden_size, (settings.num_experts,))

    def check(self) -> None:
        """What its experts answer is checked by the rows of calls."""

    def ready(self) -> None:
        """Nothing of it runs between measurements."""

    def measure(self, work: Work) -> float:
        """Seconds from torch's import in the node's process to the answer of its last expert."""
        with (
            _bootstrap_peer() as address,
            Swarm.connect(bootstrap=[address], project=self._project) as swarm,
            self._node(address) as node,
        ):
            assert node.stdout is not None
            torch_imported_s = float(node.stdout.readline())
            swarm.wait_until_alive(timeout_s=READY_TIMEOUT_S)
            row = torch.randn(1, self._settings.hidden_size)
            for number in range(self._settings.num_experts):
                swarm.expert(f"{PREFIX}.{number}")(row)
            return time.monotonic() - torch_imported_s

    def close(self) -> None:
        """It holds nothing."""

    @contextlib.contextmanager
    def _node(self, bootstrap: str) -> Iterator[subprocess.Popen[str]]:
        with tempfile.TemporaryDirectory(prefix="benchmark-node-") as folder:
            project_file = Path(folder) / "project.toml"
            project_file.write_text(project_toml(self._project), "utf-8")
            flags = ["--project-file", str(project_file), "--data-dir", str(Path(folder) / "data"), "--host", HOST]
            flags += ["--experts", f"{PREFIX}.[0:{self._settings.num_experts}]", "--bootstrap", bootstrap]
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.workers.timed_node",
                    *flags,
                    "--device",
                    "cpu",
                    "--exit-with-parent",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                yield process
            finally:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def _bootstrap_peer() -> Iterator[str]:
    """A DHT peer of this process: its address."""
    loop = LoopThread("benchmark-bootstrap")
    try:
        peer = DhtNode(Identity.generate(), HOST, 0, slot_rule=AnnouncementSlots())
        loop.submit(peer.__aenter__()).result(DHT_TIMEOUT_S)
        try:
            yield peer.address
        finally:
            loop.submit(peer.__aexit__(None, None, None)).result(DHT_TIMEOUT_S)
    finally:
        loop.close(DHT_TIMEOUT_S)


if __name__ == "__main__":
    serve(lambda: OurNode(settings_of(Settings)))
