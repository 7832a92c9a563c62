"""The coordinator as a real peer: a node announces itself in a real DHT and answers probes over real sockets."""

import asyncio

import pytest

from backend.live.dht_eyes import open_eyes, zero_row
from backend.live.eyes import Probe
from learning_at_home.clock import SystemClock
from learning_at_home.dht.node import DhtNode
from learning_at_home.directory.announcement import Announcement, Claim
from learning_at_home.directory.publisher import fetch_project, publish, withdraw
from learning_at_home.errors import ConfigError, NetworkError, NodeOverloaded, UnknownExpert
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PLAIN_SCHEME, PeerAddress
from learning_at_home.project import LayerSpec
from learning_at_home.transport.server import Server
from learning_at_home.wire.messages import CHUNK_BYTES, Reply, TensorSpec
from tests.backend.kit import ALICE, DIGITS, settings

pytestmark = pytest.mark.timeout(30)
CLOCK = SystemClock()
COORDINATOR = Identity(b"c" * 32)
WIDE = LayerSpec(prefix="wide", grid=(2,), hidden_size=CHUNK_BYTES // 2)  # a row of zeros takes two frames


class Node:
    """Hosts ffn0.0.0, refuses at ffn0.0.1 for want of room, lacks ffn0.0.2, is silent at ffn0.0.3, lies at ffn0.1.0."""

    def __init__(self) -> None:
        self.server = Server(ALICE, "digits", self, CLOCK, max_rows=4_096, max_bytes=1 << 26)
        self.rows: list[bytes] = []

    def on_work(self, ticket, work, frames) -> None:
        if work.uid == "ffn0.0.1":
            raise NodeOverloaded("full")
        if work.uid == "ffn0.0.2":
            raise UnknownExpert("not here")
        if work.uid == "ffn0.0.3":
            return
        row = b"".join(bytes(memoryview(frame)) for frame in frames[0])
        self.rows.append(row)
        spec = TensorSpec("float32", (1, 3)) if work.uid == "ffn0.1.0" else work.tensors[0]
        answer = bytes(spec.num_bytes)
        chunks = [answer[start : start + CHUNK_BYTES] for start in range(0, len(answer), CHUNK_BYTES)]
        self.server.answer(ticket, Reply(ticket.call_id, (spec,), 1, 1, 0, 0.0), chunks)

    def work_here(self) -> bool:
        return False

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(ALICE.public_key, (f"tcp://127.0.0.1:{self.server.port}",), ALICE.name)


@pytest.fixture
def node():
    made = Node()
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
async def eyes(tmp_path):
    async with open_eyes(settings(tmp_path), COORDINATOR, CLOCK) as opened:
        yield opened


async def probe(eyes, peer: PeerAddress, layer: LayerSpec, *cells: int, timeout_s: float = 5.0, urgent: bool = False):
    """What became of a probe of each cell: answered, hosts it."""
    ends: dict[int, tuple[bool, bool]] = {}

    def finished(cell: int):
        return lambda answered, hosts_it: ends.__setitem__(cell, (answered, hosts_it))

    await eyes.run_probes([Probe(peer, "digits", layer, cell, timeout_s, urgent, finished(cell)) for cell in cells])
    await asyncio.sleep(0)  # the last answer is handed over as the thread ends
    return ends


async def test_every_kind_of_answer_is_told_apart(eyes, node):
    layer = DIGITS.layer("ffn0")
    ends = await probe(eyes, node.address, layer, 0, 1, 2, 4)

    assert ends == {0: (True, True), 1: (True, True), 2: (True, False), 4: (True, False)}
    assert node.rows[0] == bytes(64 * 4)


async def test_a_row_wider_than_a_frame_is_sent_in_frames(eyes, node):
    assert await probe(eyes, node.address, WIDE, 0) == {0: (True, True)}
    assert node.rows == [bytes(WIDE.row_bytes)]


async def test_silence_ends_at_the_probes_own_deadline_while_others_are_told_at_once(eyes, node):
    started_s = CLOCK.monotonic_s()

    assert await probe(eyes, node.address, DIGITS.layer("ffn0"), 0, 3, timeout_s=0.3) == {
        0: (True, True),
        3: (False, True),
    }
    assert 0.3 <= CLOCK.monotonic_s() - started_s < 1.5


async def test_nobody_at_the_address_is_a_failure(eyes, node):
    gone = PeerAddress(ALICE.public_key, ("tcp://127.0.0.1:1",), "nobody")
    impostor = PeerAddress(Identity(b"x" * 32).public_key, node.address.endpoints, "impostor")

    for peer in (gone, impostor):
        assert await probe(eyes, peer, DIGITS.layer("ffn0"), 0, timeout_s=0.3) == {0: (False, True)}


async def test_an_urgent_probe_of_a_killed_process_ends_at_once(eyes, node, free_tcp_port):
    gone = PeerAddress(ALICE.public_key, (f"tcp://127.0.0.1:{free_tcp_port}",), "gone")
    started_s = CLOCK.monotonic_s()

    assert await probe(eyes, gone, DIGITS.layer("ffn0"), 0, urgent=True) == {0: (False, True)}
    assert CLOCK.monotonic_s() - started_s < 2.5  # not the five seconds that it may take
    assert await probe(eyes, node.address, DIGITS.layer("ffn0"), 0, urgent=True) == {0: (True, True)}


async def test_an_announcement_in_the_dht_is_seen_and_its_withdrawal_too(eyes):
    async with DhtNode(ALICE, bootstrap=[f"127.0.0.1:{eyes.dht_port}"]) as dht:
        announcement = Announcement(
            project="digits",
            name="brisk-heron",
            endpoints=("tcp://127.0.0.1:1",),
            state="online",
            claims=(Claim("ffn0", ((0, 4),), 1), Claim("ffn1", ((4, 8),), 1)),
            issued_ms=int(CLOCK.wall_s() * 1000),
        )
        await publish(dht, DIGITS, announcement)
        (seen,) = await eyes.look(DIGITS)
        assert seen.public_key == ALICE.public_key
        assert sorted(seen.announcement.claims, key=lambda claim: claim.prefix) == list(announcement.claims)
        assert 50 < seen.expires_s - CLOCK.wall_s() <= 61

        await withdraw(dht, DIGITS, announcement)
        assert await eyes.look(DIGITS) == []
    assert await eyes.look(DIGITS) == []  # nobody answers, but this peer holds the withdrawal itself


async def test_a_look_that_nobody_answers_is_not_an_empty_swarm(eyes):
    """A coordinator that has just been started again may know no other peer yet."""
    with pytest.raises(NetworkError, match="no other peer"):
        await eyes.look(DIGITS)

    async with DhtNode(ALICE, bootstrap=[f"127.0.0.1:{eyes.dht_port}"]):
        assert await eyes.look(DIGITS) == []


async def test_the_project_record_can_be_fetched_by_a_peer(eyes):
    await eyes.publish(DIGITS)
    async with DhtNode(ALICE, bootstrap=[f"127.0.0.1:{eyes.dht_port}"], client_only=True) as dht:
        assert await fetch_project(dht, "digits") == (DIGITS, COORDINATOR.public_key)


async def test_a_taken_udp_port_is_named_with_what_to_do(eyes, tmp_path):
    with pytest.raises(ConfigError, match="--dht-port"):
        async with open_eyes(settings(tmp_path, dht_port=eyes.dht_port), Identity.generate(), CLOCK):
            pass


def test_a_chunk_of_shared_parameters_is_probed_by_a_row_of_its_inputs():
    layer = LayerSpec(prefix="trunk", grid=(2,), architecture="parameters", hidden_size=1_000)
    peer = PeerAddress(bytes(32), ("tcp://127.0.0.1:1",), "x")

    row = zero_row(Probe(peer, "digits", layer, 0, 1.0, False, lambda answered, hosts_it: None))

    assert row.tensors[0].shape == (1, *layer.input_shape)
    assert layer.input_shape != layer.row_shape


def test_a_large_row_goes_to_an_unencrypted_node_as_one_frame():
    layer = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=1 << 19)
    for scheme, num_frames in (("tcp://", 2), (PLAIN_SCHEME, 1)):
        peer = PeerAddress(bytes(32), (f"{scheme}127.0.0.1:1",), "x")
        row = zero_row(Probe(peer, "digits", layer, 0, 1.0, False, lambda answered, hosts_it: None))
        assert [len(frame) for frame in row.frames] == [(1 << 21) // num_frames] * num_frames
