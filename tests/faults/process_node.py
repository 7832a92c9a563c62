"""Nodes that are processes of their own, as their kernel sees them: descriptors, memory, computing time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import psutil

from learning_at_home.client.swarm import Swarm
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent.testing import LocalSwarm
from node_agent.testing.nodes import ProcessNode
from tests.faults.gate import until

JOIN_TIMEOUT_S = 30.0


class ProcessSwarm:
    """Nodes of one layer; the project is called "test"."""

    def __init__(self, spec: LayerSpec, num_nodes: int = 1) -> None:
        self.spec = spec
        self.local = LocalSwarm(ProjectRecord(id="test", layers=(spec,)), num_nodes=num_nodes)
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> ProcessSwarm:
        self._opened.enter_context(self.local)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def connect(self) -> Swarm:
        """A trainer that knows every expert of the layer. The caller closes it."""
        swarm = Swarm.connect(bootstrap=self.local.bootstrap, project=self.local.project)
        try:
            swarm.wait_until_alive(timeout_s=JOIN_TIMEOUT_S)
        except BaseException:
            swarm.close()
            raise
        return swarm

    def address(self, number: int = 0) -> PeerAddress:
        """Where a node answers calls."""
        with self.connect() as swarm:
            return next(
                holder
                for holder in swarm.layer(self.spec.prefix).holders
                if holder is not None and holder.name == f"node-{number}"
            )

    def process(self, number: int = 0) -> psutil.Process:
        node = self.local.nodes[number]
        assert isinstance(node, ProcessNode)
        return psutil.Process(node.pid)

    def is_alive(self, number: int = 0) -> bool:
        """Whether the process runs, or is stopped."""
        node = self.local.nodes[number]
        assert isinstance(node, ProcessNode)
        return psutil.pid_exists(node.pid) and psutil.Process(node.pid).status() != psutil.STATUS_ZOMBIE


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that the process has held at once, since `forget_the_peak`."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux tells every process's peak")


def forget_the_peak(process: psutil.Process) -> int:
    """Begin anew with what it holds now, which is returned."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return peak_bytes(process)


def until_it_computes(process: psutil.Process, seconds: float = 0.05) -> None:
    """Until the process has spent this much more time on a processor than when asked."""
    begin = _computed_s(process)
    until(lambda: _computed_s(process) - begin >= seconds, "the node computes")


def _computed_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
