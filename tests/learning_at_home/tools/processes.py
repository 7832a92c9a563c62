"""A bootstrap peer as its owner starts it: `lah dht run` as a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class RunningPeer:
    process: subprocess.Popen[str]
    introduction: str
    address: str  # what it tells others to type

    @property
    def peer_id(self) -> str:
        return self.introduction.partition(", id ")[2].partition(",")[0]


@contextlib.contextmanager
def dht_peer(folder: Path, *arguments: str) -> Iterator[RunningPeer]:
    """One on 127.0.0.1, once it has told its address; ended with the context however that ends."""
    command = [sys.executable, "-m", "learning_at_home.tools.dht_command", "run", "--exit-with-parent"]
    place = ["--host", "127.0.0.1", "--port", "0", "--data-dir", str(folder)]
    with subprocess.Popen(
        [*command, *place, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            introduction, others = read_line(process), read_line(process)
            assert others.startswith("others join with: --bootstrap "), (introduction, others)
            read_line(process)  # that the address is one of this machine
            yield RunningPeer(process, introduction, others.rpartition(" ")[2])
        finally:
            if process.poll() is None:
                process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line; the test's own timeout is the deadline."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
