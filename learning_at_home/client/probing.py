"""A trainer's own probes of nodes that a coordinator suspects: the coordinator may not reach them, or may lie.

One forward of a row of zeros, as the coordinator's own probe is. An answer overrules the suspicion; silence adds ours.
"""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import torch

from learning_at_home.client.async_calls import AsyncCalls
from learning_at_home.client.compression import Compression
from learning_at_home.client.fanout import CallContext, Task, expected_of, frame
from learning_at_home.errors import LearningAtHomeError, UsageError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.peer_address import PeerAddress
from learning_at_home.tensors.frames import DTYPES

PROBE_TIMEOUT_S = 3.0
AT_ONCE = 16  # whoever suspects everybody has us probe them in turns
PAUSE_S = 5.0  # between two probes of one node


class Prober:
    """Probes on the swarm's own loop for calls. Any thread."""

    def __init__(self, context: CallContext, asynchronous: AsyncCalls) -> None:
        self._context = context
        self._asynchronous = asynchronous
        self._lock = threading.Lock()
        self._waiting: dict[bytes, None] = {}  # by public key; at most as many as the directory knows
        self._probed_s: dict[bytes, float] = {}
        self._runs = False

    def suspected(self, public_key: bytes) -> None:
        """The coordinator says that this node does not answer."""
        with self._lock:
            self._waiting[public_key] = None
            if self._runs:
                return
            self._runs = True
        try:
            self._asynchronous.submit(self._run())
        except UsageError:  # the swarm is closed
            with self._lock:
                self._runs = False

    async def _run(self) -> None:
        while keys := self._take():
            await asyncio.gather(*map(self._probe, keys))

    def _take(self) -> list[bytes]:
        """The next few; when there are none the run has ended."""
        with self._lock:
            keys = list(self._waiting)[:AT_ONCE]
            for key in keys:
                del self._waiting[key]
            self._runs = bool(keys)
        return keys

    async def _probe(self, public_key: bytes) -> None:
        now = self._context.clock.monotonic_s()
        self._probed_s = {key: at_s for key, at_s in self._probed_s.items() if now < at_s + PAUSE_S}
        found = self._context.directory.announced_cell(public_key)
        if found is None or public_key in self._probed_s:
            return
        self._probed_s[public_key] = now
        try:
            task = self._zero_row(*found)
            await self._asynchronous.of_running_loop().call(task, PROBE_TIMEOUT_S, Compression())
        except LearningAtHomeError:
            pass  # the swarm is closing; what became of the call itself its round has told the directory

    def _zero_row(self, uid: ExpertUid, holder: PeerAddress) -> Task:
        layer = self._context.directory.project.layer(uid.prefix)
        zeros = tuple(torch.zeros(1, *leaf.shape, dtype=DTYPES[leaf.dtype]) for leaf in layer.inputs)
        framed = frame(zeros, holder, "none")
        expected = expected_of(layer.outputs, 1)
        every_row = np.empty(0, np.int64)
        cell = layer.cells.cell(uid)
        return Task(str(uid), cell, holder, "forward", zeros, 1, every_row, expected, framed=framed)
