"""How soon a trainer that calls nobody knows of a node's end: real processes. Run by benchmarks.sides."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.worker import Work, serve, settings_of
from learning_at_home.client.swarm import Swarm

START_TIMEOUT_S = 120.0
POLL_S = 0.02
SETTLED_S = 6.0  # nodes speak to the coordinator every 5 s: after a stop all have done so by then
SIDE = 4
PROJECT = f"""
id = "benchmark"
[[layers]]
prefix = "bench"
grid = [{SIDE}, {SIDE}]
architecture = "ffn"
hidden_size = 16
"""


@dataclass(frozen=True, slots=True)
class Settings:
    seed: int


class OurMirror:
    """`killed` and `silent`: seconds from the signal to the moment when no expert of the node can be chosen."""

    def __init__(self, settings: Settings) -> None:
        with contextlib.ExitStack() as opened:
            self._folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            opened.callback(self._end)
            self._processes: dict[str, subprocess.Popen[bytes]] = {}
            (self._folder / "project.toml").write_text(PROJECT)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            where = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(self._folder / "coordinator")]
            self._start("coordinator", ["coordinator", *where, "--project-file", str(self._folder / "project.toml")])
            root = f"http://127.0.0.1:{port}"
            _until(lambda: _is_ready(f"{root}/readyz"), "the coordinator is ready")
            self._url = f"{root}/p/benchmark"
            self._view = f"{root}/api/v1/projects/benchmark/view"
            for line in range(SIDE):
                self._start_node(line)
            self._swarm = opened.enter_context(Swarm.connect(self._url))
            self.ready()
            self._opened = opened.pop_all()

    def check(self) -> None:
        assert self._swarm.directory_source().name == "mirror"

    def ready(self) -> None:
        """After a stop of everything: until the coordinator has met all nodes again, and the trainer the mirror."""
        _until(self._all_are_serving, "the coordinator sees all experts serve")
        self._swarm.wait_until_alive(timeout_s=START_TIMEOUT_S)
        _until(lambda: self._swarm.directory_source().name == "mirror", "the mirror is live")
        time.sleep(SETTLED_S)

    def _all_are_serving(self) -> bool:
        with urllib.request.urlopen(self._view, timeout=5) as answer:  # noqa: S310 - of our own making
            view = json.loads(answer.read())
        healths = [cell[0] for layer in view["layers"] for cell in layer["cells"]]
        return healths == ["serving"] * SIDE**2

    def measure(self, work: Work) -> float:
        """The first line's node goes, and is started anew."""
        process = self._processes["node-0"]
        began_s = time.monotonic()
        process.send_signal(signal.SIGKILL if work.name == "killed" else signal.SIGSTOP)
        _until(lambda: self._swarm.layer("bench").num_alive == SIDE * (SIDE - 1), "the node is out")
        took_s = time.monotonic() - began_s
        process.kill()
        process.wait()
        self._start_node(0)
        return took_s

    def close(self) -> None:
        self._opened.close()

    def _start_node(self, line: int) -> None:
        place = ["--data-dir", str(self._folder / f"node-{line}"), "--device", "cpu", "--host", "127.0.0.1"]
        experts = ["--experts", f"bench.[{line}:{line + 1}].[0:{SIDE}]"]
        self._start(f"node-{line}", ["node", "--coordinator", self._url, *experts, *place])

    def _start(self, name: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "learning_at_home.cli", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        self._processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )

    def _end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - of our own making
            return bool(answer.status == 200)
    except OSError:
        return False


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come about that {what}")
        time.sleep(POLL_S)


if __name__ == "__main__":
    serve(lambda: OurMirror(settings_of(Settings)))
