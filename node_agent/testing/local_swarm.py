"""Real nodes on this machine, with a coordinator or without: `with LocalSwarm(project, num_nodes=4) as swarm: ...`

The cells of all layers are divided among the nodes in their flat order. A DHT peer inside this process is where nodes
and trainers bootstrap from, so that any node may be killed. Nodes are subprocesses, or with `in_process=True` agents
on a thread of this process: these start in a fraction of a second, and `expert(uid)` gives the hosted network itself.
They share torch's settings with this process, which computes on one CPU thread from then on.

With `wan` everybody reaches the nodes' experts over lines of that kind, one per node, which `swarm.wan` changes, cuts
and counts. The DHT's datagrams go directly.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.client.swarm import Swarm
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.errors import UnknownExpert, UsageError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.project import ProjectRecord
from learning_at_home.testing.wan import Wan
from learning_at_home.testing.wan_process import WanProcess
from node_agent.agent import Agent
from node_agent.config import NodeConfig
from node_agent.experts.expert import Expert
from node_agent.testing.nodes import AgentNode, LocalNode, ProcessNode
from node_agent.testing.project_files import project_toml

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0  # torch takes over a second to import, and on a busy machine far longer
DHT_TIMEOUT_S = 10.0


class LocalSwarm:
    """Starts with the context, serving when it is entered; ends every node with it."""

    def __init__(
        self,
        project: ProjectRecord,
        num_nodes: int = 4,
        *,
        in_process: bool = False,
        experts: Sequence[Sequence[str]] | None = None,
        device: str = "cpu",
        wait: bool = True,
        unencrypted: bool = False,
        allow_experts: Sequence[str] = (),
        wan: Wan | Sequence[Wan] | None = None,
        coordinator: str | None = None,
    ) -> None:
        """`experts`: patterns per node, instead of equal shares. `wait`: enter only when every node serves.

        `unencrypted`: nodes for callers with `unencrypted=True`. `allow_experts`: packages whose experts they may run.
        `wan`: the line to every node, or one for each. `coordinator`: the address of this very project at one, as
        `http://127.0.0.1:8765/p/digits`, which the nodes join and in the end leave.
        """
        self.coordinator = coordinator
        self._allow_experts = tuple(allow_experts)
        self._unencrypted = unencrypted
        self.project = project.check()
        shares = [list(share) for share in experts] if experts is not None else divide_cells(project, num_nodes)
        if not shares or not all(shares):
            raise UsageError(f"{num_nodes} nodes need at least as many cells; the project has fewer")
        self._shares = shares
        self._in_process = in_process
        self._device = device
        self._wait = wait
        self._closed = False
        self._generation = 0  # of nodes that replaced others
        self.nodes: list[LocalNode] = []
        self._wans = [wan] * len(shares) if isinstance(wan, Wan) else list(wan or ())
        if wan is not None and len(self._wans) != len(shares):
            raise UsageError(f"{len(self._wans)} lines for {len(shares)} nodes")
        self._wan: WanProcess | None = None
        self._reserved: list[socket.socket] = []  # the nodes' ports, where lines lead to

    def __enter__(self) -> LocalSwarm:
        self._folder = tempfile.TemporaryDirectory(prefix="local-swarm-")
        self._loop = LoopThread("local-swarm")
        self._dht = DhtNode(Identity.generate(), HOST, 0, slot_rule=AnnouncementSlots())
        try:
            self._loop.submit(self._dht.__aenter__()).result(DHT_TIMEOUT_S)
            if self._wans:
                self._open_lines()
            self._project_file.write_text(project_toml(self.project), "utf-8")
            self.nodes = [self._node(number, f"node-{number}") for number in range(len(self._shares))]
            for node in self.nodes:
                node.start()
            if self._wait:
                self.wait_until_serving()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def shares(self) -> list[list[str]]:
        """By node, the uids that it hosts, or patterns of them where such were given."""
        return self._shares

    @property
    def bootstrap(self) -> list[str]:
        """Addresses to join by: `Swarm.connect(bootstrap=swarm.bootstrap, project=swarm.project)`."""
        return [self._dht.address]

    def connect(self, run: str | None = None) -> Swarm:
        """A trainer of this swarm; at its coordinator, if it has one, a run of this name. Raises as Swarm.connect."""
        return Swarm.connect(
            self.coordinator,
            bootstrap=self.bootstrap,
            project=self.project if self.coordinator is None else None,
            run=run,
            unencrypted=self._unencrypted,
        )

    @property
    def wan(self) -> WanProcess:
        """The lines to the nodes, by their numbers. Raises UsageError without any."""
        if self._wan is None:
            raise UsageError("this swarm's nodes are reached directly; give LocalSwarm(wan=Wan(...))")
        return self._wan

    def wait_until_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until every node has announced its experts. Raises TimeoutError, or NodeDied with a node's last words."""
        deadline = time.monotonic() + timeout_s
        for node in self.nodes:
            node.wait_until_serving(deadline)

    def kill(self, number: int) -> None:
        """End a node without any goodbye (SIGKILL)."""
        self.nodes[number].kill()

    def stop(self, number: int) -> None:
        """Let a node fall silent (SIGSTOP): its connections stay open, nothing answers."""
        self._process(number).send_signal(signal.SIGSTOP)

    def cont(self, number: int) -> None:
        """Wake a stopped node (SIGCONT)."""
        self._process(number).send_signal(signal.SIGCONT)

    def leave(self, number: int) -> None:
        """Let a node leave cleanly: it finishes its work and withdraws its announcement."""
        self.nodes[number].close()

    def restart(self, number: int) -> None:
        """Start a node again that was killed or left: the same key, new weights. Waits until it serves."""
        node = self.nodes[number]
        node.close()
        node.start()
        node.wait_until_serving(time.monotonic() + START_TIMEOUT_S)

    def replace(self, number: int) -> None:
        """Start another node for the cells of one that was killed or left: another key, new weights. Does not wait."""
        self.nodes[number].close()
        self._generation += 1
        self.nodes[number] = self._node(number, f"node-{number}-{self._generation}")
        self.nodes[number].start()

    def agent(self, number: int) -> Agent:
        """The agent of a node. Raises UsageError unless in_process."""
        node = self.nodes[number]
        if not isinstance(node, AgentNode) or node.agent is None:
            raise UsageError("only a running node of LocalSwarm(in_process=True) can be looked into")
        return node.agent

    def address(self, number: int) -> PeerAddress:
        """Where a node answers calls. Raises UsageError unless in_process and serving."""
        parts = self.agent(number).parts
        if parts is None:
            raise UsageError("the node does not serve yet")
        return parts.address

    def expert(self, uid: str | ExpertUid) -> Expert:
        """The hosted expert itself. Raises UsageError unless in_process, UnknownExpert when no node has it."""
        for number in range(len(self.nodes)):
            parts = self.agent(number).parts
            if parts is not None and str(uid) in parts.host.experts.by_uid:
                return parts.host.experts.by_uid[str(uid)]
        raise UnknownExpert(f"no node of this swarm hosts {uid}")

    def close(self) -> None:
        """End every node and the bootstrap peer. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as ending:  # the last one first, and all of them even if one fails
            ending.callback(self._folder.cleanup)
            for reserved in self._reserved:
                ending.callback(reserved.close)
            if self._wan is not None:
                ending.callback(self._wan.close)
            ending.callback(self._loop.close, DHT_TIMEOUT_S)
            ending.callback(lambda: self._loop.submit(self._dht.__aexit__(None, None, None)).result(DHT_TIMEOUT_S))
            if self.coordinator is None:
                for node in self.nodes:
                    ending.callback(node.kill)  # the whole swarm ends: there is nobody left to say goodbye to
            elif self.nodes:
                with ThreadPoolExecutor(len(self.nodes)) as all_at_once:
                    for left in [all_at_once.submit(node.close) for node in self.nodes]:
                        ending.callback(left.result)

    def _open_lines(self) -> None:
        self._wan = WanProcess().__enter__()
        for wan in self._wans:
            # Bound and not listening, it keeps others off the port; the node may listen there all the same.
            reserved = socket.socket()
            self._reserved.append(reserved)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((HOST, 0))
            self._wan.open(HOST, reserved.getsockname()[1], wan)

    @property
    def _project_file(self) -> Path:
        return Path(self._folder.name) / "project.toml"

    def _node(self, number: int, folder: str) -> LocalNode:
        config = NodeConfig(
            coordinator=self.coordinator,
            project_file=self._project_file if self.coordinator is None else None,
            bootstrap=tuple(self.bootstrap),
            experts=tuple(self._shares[number]),
            device=self._device,
            name=folder,
            data_dir=Path(self._folder.name) / folder,
            host=HOST,
            port=self._reserved[number].getsockname()[1] if self._wan is not None else 0,
            announce_port=self._wan.ports[number] if self._wan is not None else None,
            unencrypted=self._unencrypted,
            allow_experts=self._allow_experts,
        ).check()
        return AgentNode(config, self._loop) if self._in_process else ProcessNode(config)

    def _process(self, number: int) -> ProcessNode:
        node = self.nodes[number]
        if not isinstance(node, ProcessNode):
            raise UsageError("a node of LocalSwarm(in_process=True) is no process that could be stopped")
        return node


def divide_cells(project: ProjectRecord, num_nodes: int) -> list[list[str]]:
    """Per node the uids that it hosts: of each layer a run of neighbours, as equal as can be."""
    shares: list[list[str]] = [[] for _ in range(num_nodes)]
    for layer in project.layers:
        uids = [str(uid) for uid in layer.cells.uids(layer.prefix)]
        for number, share in enumerate(shares):
            first, end = len(uids) * number // num_nodes, len(uids) * (number + 1) // num_nodes
            share += uids[first:end]
    return shares
