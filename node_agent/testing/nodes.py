"""The two kinds of node of a LocalSwarm: a process of its own, or an agent on a loop of this process. Threaded.

Both start at once and say later when they serve; both keep their key in their folder: a restart is the same node.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Protocol

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.errors import ConfigError, NetworkError
from node_agent.agent import SERVING_LINE, Agent
from node_agent.config import NodeConfig

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
MAX_LINES = 200


class NodeDied(NetworkError):
    """A node of the swarm ended by itself; the message has its last words."""


class LocalNode(Protocol):
    """What a LocalSwarm asks of a node."""

    def start(self) -> None: ...

    def wait_until_serving(self, deadline: float) -> None:
        """Raises TimeoutError at the deadline (monotonic), NodeDied when it ended before."""
        ...

    def kill(self) -> None:
        """End it without any goodbye."""
        ...

    def close(self) -> None:
        """End it cleanly, if it still runs."""
        ...


class ProcessNode:
    """`lah node` as a subprocess; it ends with this process, however that ends."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[str] | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=MAX_LINES)
        self._heard = threading.Event()  # set once it serves, or has ended
        self._serves = False
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._heard.clear()
        self._serves = False
        self._lines.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "node_agent.cli", *_flags(self._config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="node-output", daemon=True)
        self._reader.start()

    def wait_until_serving(self, deadline: float) -> None:
        if not self._heard.wait(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"the node serves nothing yet:\n{self.output}")
        if self._process is None or self._process.poll() is not None or not self._serves:
            raise NodeDied(f"the node ended:\n{self.output}")

    @property
    def output(self) -> str:
        """Its last lines."""
        return "\n".join(self._lines)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send_signal(signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send_signal(signal.SIGTERM)
            self.send_signal(signal.SIGCONT)  # a stopped process takes no other signal
        self._reap()

    def _reap(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is self._process.stdout and self._reader is not None:
                self._reader.join(STOP_TIMEOUT_S)
            if pipe is not None:
                pipe.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line.rstrip("\n"))
            if SERVING_LINE in line:
                self._serves = True
                self._heard.set()
        self._heard.set()


class AgentNode:
    """An agent on a loop thread of this process: quick to start, and its experts can be looked at."""

    def __init__(self, config: NodeConfig, loop: LoopThread) -> None:
        self._config = config
        self._loop = loop
        self.agent: Agent | None = None
        self._running: concurrent.futures.Future[None] | None = None

    def start(self) -> None:
        self.agent = self._loop.submit(self._make()).result(STOP_TIMEOUT_S)
        self._running = self._loop.submit(self.agent.run())

    async def _make(self) -> Agent:
        return Agent(self._config)

    def wait_until_serving(self, deadline: float) -> None:
        assert self.agent is not None
        assert self._running is not None
        serving = self._loop.submit(self._until_serving(self.agent))
        concurrent.futures.wait(
            [serving, self._running],
            timeout=max(0.0, deadline - time.monotonic()),
            return_when=concurrent.futures.FIRST_COMPLETED,
        )
        if self._running.done():
            serving.cancel()
            raise NodeDied("the node ended") from self._running.exception()
        if not serving.done():
            serving.cancel()
            raise TimeoutError("the node serves nothing yet")

    async def _until_serving(self, agent: Agent) -> None:
        await agent.serving.wait()

    async def _stop(self, agent: Agent, abruptly: bool) -> None:
        agent.stop(abruptly=abruptly)

    def kill(self) -> None:
        self._end(abruptly=True)

    def close(self) -> None:
        self._end(abruptly=False)

    def _end(self, *, abruptly: bool) -> None:
        if self.agent is None or self._running is None:
            return
        agent, running = self.agent, self._running
        self._loop.submit(self._stop(agent, abruptly)).result(STOP_TIMEOUT_S)
        self.agent = self._running = None
        error = running.exception(STOP_TIMEOUT_S)
        if error is not None:
            log.warning("a node had ended by itself: %s", error)


def _flags(config: NodeConfig) -> list[str]:
    """The command line of the part of a configuration that a LocalSwarm sets."""
    if config.data_dir is None:
        raise ConfigError("a local node needs a data folder")
    flags = ["--data-dir", str(config.data_dir), "--host", config.host, "--device", config.device]
    flags += ["--log-level", config.log_level, "--exit-with-parent"]
    if config.coordinator is not None:
        flags += ["--coordinator", config.coordinator]
    if config.project_file is not None:
        flags += ["--project-file", str(config.project_file)]
    for address in config.bootstrap:
        flags += ["--bootstrap", address]
    for pattern in config.experts:
        flags += ["--experts", pattern]
    for package in config.allow_experts:
        flags += ["--allow-experts", package]
    if config.port:
        flags += ["--port", str(config.port)]
    if config.announce_port is not None:
        flags += ["--announce-port", str(config.announce_port)]
    if config.unencrypted:
        flags.append("--unencrypted")
    if config.name is not None:
        flags += ["--name", config.name]
    return flags
