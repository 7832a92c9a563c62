"""What a host refuses by the header alone, and what it counts."""

import pytest
import torch

from learning_at_home.clock import SystemClock
from learning_at_home.errors import NodeDraining, NodeOverloaded
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.transport.server import Ticket
from learning_at_home.wire.messages import TensorSpec, Work
from node_agent.experts.hosted import HostedExperts
from node_agent.runtime.batcher import Limits
from node_agent.runtime.host import Host, HostOptions

PROJECT = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(2,), hidden_size=8, architecture="nop"),))
WORK = Work(1, "ffn0.0", "forward", (TensorSpec("float32", (3, 8)),))


class NeverRead:
    """A frame that may not be looked into."""

    @property
    def buffer(self):
        raise AssertionError("the tensors were read although they cannot be taken")


@pytest.fixture
def host():
    """A host whose device thread never started, and whose data plane does not compute: nothing leaves its queue."""
    experts = HostedExperts.create([ExpertUid("ffn0", (0,))], PROJECT, torch.device("cpu"))
    options = HostOptions(limits=Limits(queued_rows=4))
    host = Host(Identity.generate(), PROJECT, experts, SystemClock(), options)
    host.work_here = lambda: False
    host.server.start()
    yield host
    host.stop()


def ticket(call_id: int = 1) -> Ticket:
    now = SystemClock().monotonic_s()
    return Ticket(b"", call_id, 0, now + 60.0, now, b"")


ZEROS = memoryview(bytearray(3 * 8 * 4))  # the frame of WORK


def test_a_full_node_refuses_without_reading_the_tensors(host):
    host.on_work(ticket(), WORK, [[ZEROS]])

    with pytest.raises(NodeOverloaded, match="3 rows wait"):
        host.on_work(ticket(), WORK, [[NeverRead()]])

    assert host.device_thread.queued_rows == 3


def test_a_draining_node_takes_nothing_new(host):
    host.drain(0.0)

    with pytest.raises(NodeDraining):
        host.on_work(ticket(), WORK, [[NeverRead()]])


def test_what_was_refused_anywhere_is_counted(host):
    host.statistics.refuse(2)
    host.server.counters.refused = 3
    host.server.counters.malformed = 5
    host.server.counters.dropped_answers = 7

    assert host.refused == 17
