"""Nodes that are killed while others join, at a rate, beside whatever trains on them.

`with ChurningNodes(nodes, 0.3):` kills 30 % of a LocalSwarm's node processes a minute (SIGKILL), one after the other,
and starts another node for the same cells each time: with another key, so that the dead node's claim stands until its
announcement expires, and with fresh weights, since experts do not outlive their hosts. Threaded: one thread kills and
starts; it asks a node for its experts' updates first, which is how many updates die with it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import torch

import learning_at_home as lah
from learning_at_home.client.swarm import Swarm
from learning_at_home.errors import LearningAtHomeError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.peer_address import PeerAddress
from learning_at_home.tensors.frames import DTYPES, to_frames
from learning_at_home.transport.calls import Call
from node_agent.testing import LocalSwarm
from node_agent.testing.nodes import NodeDied

log = logging.getLogger(__name__)

MINUTE_S = 60.0
ASK_TIMEOUT_S = 5.0  # for a node's updates; a node that is slower than this dies uncounted


@dataclass(slots=True)
class Kill:
    """One node's end, and who came for it. Times are seconds since the churn began."""

    node: int
    at_s: float
    experts: int  # that answered when they were asked
    updates_lost: int  # that these had made
    joined_after_s: float | None = None  # until the other node said that it serves; None: not before the end


@dataclass(slots=True)
class ChurningNodes:
    """From `with` to its end. `killed_per_minute`: this share of all nodes; none when it is 0.

    At least one node is left alone at any time. `others_join=False`: what is killed stays away.
    """

    nodes: LocalSwarm
    killed_per_minute: float
    seed: int = 0
    others_join: bool = True
    kills: list[Kill] = field(default_factory=list)
    error: BaseException | None = None
    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _swarm: Swarm | None = field(default=None, repr=False)
    _joining: dict[int, tuple[Kill, float]] = field(default_factory=dict, repr=False)

    @property
    def interval_s(self) -> float:
        """Between two kills."""
        return MINUTE_S / (self.killed_per_minute * len(self.nodes.nodes))

    @property
    def updates_lost(self) -> int:
        """That experts had made whose hosts were killed."""
        return sum(kill.updates_lost for kill in self.kills)

    def __enter__(self) -> ChurningNodes:
        if self.killed_per_minute > 0:
            self._swarm = lah.Swarm.connect(bootstrap=self.nodes.bootstrap, project=self.nodes.project)
            self._thread = threading.Thread(target=self._run, name="churn")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._swarm is not None:
            self._swarm.close()
        if self.error is not None and kind is None:
            raise self.error

    def _run(self) -> None:
        try:
            self._churn(random.Random(self.seed))
        except BaseException as error:  # noqa: BLE001 - the thread's edge: raised where the churn ends
            self.error = error

    def _churn(self, order: random.Random) -> None:
        began, away = time.monotonic(), set[int]()
        for turn in range(1, 1_000_000):
            if self._waits_until(began + turn * self.interval_s):
                return
            present = [number for number in range(len(self.nodes.nodes)) if number not in {*away, *self._joining}]
            if len(present) < 2:
                log.warning("only %d nodes are left: nobody is killed this time", len(present))
                continue
            number = order.choice(present)
            experts, updates = self.updates_of(number)
            self.nodes.kill(number)
            kill = Kill(number, time.monotonic() - began, experts, updates)
            self.kills.append(kill)
            if self.others_join:
                self.nodes.replace(number)
                self._joining[number] = kill, time.monotonic()
            else:
                away.add(number)

    def _waits_until(self, moment: float) -> bool:
        """Note who has joined meanwhile; whether the churn is over."""
        while True:
            for number, (kill, started) in list(self._joining.items()):
                with contextlib.suppress(TimeoutError):
                    try:
                        self.nodes.nodes[number].wait_until_serving(time.monotonic())
                        kill.joined_after_s = time.monotonic() - started
                    except NodeDied as error:
                        log.warning("a node that was to join died: %s", error)
                    del self._joining[number]
            left_s = moment - time.monotonic()
            if left_s <= 0 or self._over.wait(min(0.1, left_s)):
                return self._over.is_set()

    def updates_of(self, number: int) -> tuple[int, int]:
        """How many experts of a node answer, and the updates that they have made, by a forward of one row each."""
        assert self._swarm is not None, "while nodes churn"
        asked: dict[PeerAddress, list[Call]] = {}
        for text in self.nodes.shares[number]:
            uid = ExpertUid.parse(text)
            layer = self.nodes.project.layer(uid.prefix)
            holder = self._swarm.layer(uid.prefix).holders[layer.cells.cell(uid)]
            if holder is not None:
                spec, frames = to_frames(torch.zeros(1, *layer.input_shape, dtype=DTYPES[layer.dtype]))
                asked.setdefault(holder, []).append(Call(text, "forward", (spec,), frames))
        deadline = time.monotonic() + ASK_TIMEOUT_S
        experts = updates = 0
        with self._swarm.calls.connections.exchange() as exchange, contextlib.suppress(LearningAtHomeError):
            for holder, calls in asked.items():
                exchange.send(holder, self.nodes.project.id, calls, deadline)
            while exchange.pending and (answer := exchange.next_answer(deadline)) is not None:
                if answer.reply is not None:
                    experts, updates = experts + 1, updates + answer.reply.updates
        return experts, updates
