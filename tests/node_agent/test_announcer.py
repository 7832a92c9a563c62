"""When a node announces, looks and withdraws."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from learning_at_home.clock import SystemClock
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import key_of
from learning_at_home.dht.slot_exchange import SlotAsk
from learning_at_home.directory.announcement import Announcement, Claim, prefix_name
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish
from learning_at_home.directory.slot_rule import AnnouncementSlots
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, ProjectRecord
from node_agent import announcer as announcing
from node_agent.announcer import Announcer
from node_agent.experts.hosted import HostedExperts

TIMEOUT_S = 20.0
PROJECT = ProjectRecord(
    id="digits",
    layers=tuple(LayerSpec(prefix=prefix, grid=(2,), architecture="nop") for prefix in ("ffn0", "ffn1")),
)
UIDS = [ExpertUid("ffn0", (0,)), ExpertUid("ffn1", (0,))]


@pytest.fixture
async def dht() -> AsyncIterator[DhtNode]:
    async with DhtNode(Identity.generate(), slot_rule=AnnouncementSlots()) as dht:
        yield dht


@pytest.fixture
def alice(dht: DhtNode) -> Announcer:
    """A node with one expert of each layer."""
    return Announcer(
        dht,
        Directory(PROJECT, dht.clock),
        HostedExperts.create(UIDS, PROJECT, torch.device("cpu")),
        SystemClock(),
        name="alice",
        endpoints=("tcp://127.0.0.1:1",),
        load_ms=lambda: 0.0,
        on_change=lambda: None,
    )


async def bob_claims(dht: DhtNode, prefix: str) -> None:
    """An older claim of the cell that alice serves."""
    bob = Announcement(
        project="digits",
        name="bob",
        endpoints=("tcp://127.0.0.1:2",),
        state="online",
        claims=(Claim(prefix, ((0, 1),), 1_000),),
        issued_ms=round(dht.clock.wall_s() * 1000),
        load_ms=0.0,
        agent="test",
    )
    async with DhtNode(Identity.generate(), bootstrap=[dht.address]) as other:
        await publish(other, PROJECT, bob)


async def names_in(dht: DhtNode, prefix: str) -> set[str]:
    key = key_of(prefix_name("digits", prefix, PROJECT.layer(prefix).cells, ()))
    (found,) = await dht.find_slots([SlotAsk(key)])
    announced = [Announcement.from_bytes(record.value) for record in found.records]
    return {each.name for each in announced if any(claim.prefix == prefix for claim in each.claims)}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[tuple[str, ...]]":
    """The prefixes that each announcement claims, as they come."""
    queue: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()

    async def noting(dht: DhtNode, project: ProjectRecord, announcement: Announcement, *, before) -> int:
        held_by = await publish(dht, project, announcement, before=before)
        queue.put_nowait(tuple(claim.prefix for claim in announcement.claims))
        return held_by

    monkeypatch.setattr(announcing, "publish", noting)
    return queue


async def test_a_look_that_never_ends_does_not_hold_up_the_next_announcement(alice, published, monkeypatch):
    looks = 0
    looking = asyncio.Event()

    async def look_for_ever() -> bool:
        nonlocal looks
        looks += 1
        if looks > 1:
            looking.set()
            await asyncio.Event().wait()
        return False

    monkeypatch.setattr(alice, "look", look_for_ever)
    monkeypatch.setattr(announcing, "FIRST_LOOKS_S", (0.01,))
    monkeypatch.setattr(announcing, "ANNOUNCEMENT_REFRESH_S", 0.1)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(alice.run())
        await looking.wait()
        while not published.empty():
            published.get_nowait()
        for _ in range(2):  # the first may have been under way
            await published.get()
        running.cancel()


async def test_what_is_yielded_is_announced_at_once(alice, dht, published, monkeypatch):
    monkeypatch.setattr(announcing, "FIRST_LOOKS_S", (0.01,) * 1_000)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(alice.run())
        first = await published.get()
        await bob_claims(dht, "ffn1")
        second = await published.get()  # far sooner than the next refresh
        running.cancel()

    assert (first, second) == (("ffn0", "ffn1"), ("ffn0",))
    assert await names_in(dht, "ffn1") == {"bob"}


async def test_what_an_older_claim_has_is_never_announced(alice, dht, published):
    await bob_claims(dht, "ffn0")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(alice.run())
        first = await published.get()
        running.cancel()

    assert first == ("ffn1",)


async def test_an_announcement_that_was_broken_off_is_withdrawn_too(alice, dht, monkeypatch):
    stored = asyncio.Event()

    async def stuck(dht: DhtNode, project: ProjectRecord, announcement: Announcement, *, before) -> int:
        await publish(dht, project, announcement)
        stored.set()
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(announcing, "publish", stuck)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(alice.run())
        await stored.wait()
        running.cancel()
    before = await names_in(dht, "ffn0")
    await alice.withdraw()

    assert before == {"alice"}
    assert await names_in(dht, "ffn0") == set()


async def test_withdrawing_ends_although_nobody_answers(alice, dht, monkeypatch, caplog):
    async def never(dht: DhtNode, project: ProjectRecord, announcement: Announcement) -> None:
        await asyncio.Event().wait()

    await alice.publish()
    monkeypatch.setattr(announcing, "withdraw", never)
    monkeypatch.setattr(announcing, "WITHDRAW_TIMEOUT_S", 0.01)
    async with asyncio.timeout(TIMEOUT_S):
        await alice.withdraw()
