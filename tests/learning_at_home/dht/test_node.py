"""DHT peers on real sockets of 127.0.0.1."""

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from learning_at_home.dht.contacts import Contact
from learning_at_home.dht.empty_keys import EMPTY_S
from learning_at_home.dht.node import DhtNode
from learning_at_home.dht.records import SKEW_MS, Record, sign_record
from learning_at_home.errors import BootstrapFailed, ConfigError, RecordRefused
from learning_at_home.identity import Identity
from learning_at_home.testing import ManualClock

KEY = b"k" * 20
NO_NAME = "a" * 64  # too long for DNS: no resolver is asked


@contextlib.asynccontextmanager
async def network(count: int, **settings: Any) -> AsyncIterator[list[DhtNode]]:
    """Peers of which each knows the first; all of them know each other when it is open."""
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        nodes: list[DhtNode] = []
        for _ in range(count):
            addresses = [nodes[0].address] if nodes else []
            nodes.append(await stack.enter_async_context(DhtNode(Identity.generate(), bootstrap=addresses, **settings)))
        yield nodes


@contextlib.contextmanager
def silent_socket() -> Iterator[socket.socket]:
    """A peer that is bound and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        yield silent


def contact_at(silent: socket.socket) -> Contact:
    return Contact(Identity.generate().public_key, *silent.getsockname())


def drained(silent: socket.socket) -> int:
    """How many datagrams had come."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while silent.recv(10_000):
            count += 1
    return count


async def until(condition) -> None:
    """Let the loop run until it holds; the caller's deadline is what ends a wait in vain."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def values(records: list[Record]) -> list[bytes]:
    return [record.value for record in records]


async def test_two_peers_alone_share_what_either_stores():
    async with network(2) as (alice, bob):
        assert await alice.store(KEY, b"of alice", 60) == 2
        assert await bob.store(KEY, b"of bob", 60) == 2

        assert sorted(values(await alice.get(KEY))) == [b"of alice", b"of bob"]
        assert await bob.get(KEY) == await alice.get(KEY)


async def test_a_peer_alone_holds_its_own_records():
    async with network(1) as (alice,):
        assert await alice.store(KEY, b"value", 60) == 1
        assert values(await alice.get(KEY)) == [b"value"]
        assert (await alice.find(KEY)).num_answered == 0


async def test_many_keys_are_stored_and_found_in_one_crawl():
    keys = [bytes([number]) * 20 for number in range(8)]
    async with network(12) as nodes:
        author = nodes[3]
        now_ms = author._wall_ms()
        records = [
            sign_record(author.identity, key, b"of " + key, sequence=now_ms, expires_ms=now_ms + 60_000) for key in keys
        ]
        assert await author.store_many(records) == [12] * 8

        found = await nodes[7].find_many([*keys, KEY])
        assert {key: values(list(answer.records)) for key, answer in found.items()} == {
            **{key: [b"of " + key] for key in keys},
            KEY: [],
        }
        assert min(answer.num_answered for answer in found.values()) >= 5
        assert await nodes[7].find_many([]) == {}
        assert await nodes[7].store_many([]) == []


@pytest.mark.slow
async def test_any_of_thirty_peers_finds_what_any_stored():
    async with network(30, wait_timeout_s=10) as nodes:  # thirty share one loop, and it may share its core
        assert await nodes[3].store(KEY, b"value", 60) == 20

        for node in nodes[::4]:
            assert values(await node.get(KEY)) == [b"value"]


async def test_a_key_found_empty_is_not_asked_for_again_for_a_moment_unless_something_is_stored():
    clock = ManualClock()
    async with network(8, clock=clock) as (alice, bob, *others):
        requests = lambda: sum(node._protocol.counters["requests"] for node in (bob, *others))  # noqa: E731
        asked = (await alice.find(KEY)).num_answered
        assert asked >= 5

        before = requests()
        assert (await alice.find(KEY)).num_answered == asked
        assert requests() == before

        await alice.store(KEY, b"of alice", 60)
        assert values(await alice.get(KEY)) == [b"of alice"]

        assert values(await bob.get(b"e" * 20)) == []
        await alice.store(b"e" * 20, b"of alice", 60)
        clock.advance(EMPTY_S)
        assert values(await bob.get(b"e" * 20)) == [b"of alice"]


async def test_a_newer_value_wins_even_where_most_peers_hold_the_older():
    async with network(5) as nodes:
        author, forgetful = nodes[0], nodes[1]
        await author.store(KEY, b"old", 60)
        newer = sign_record(
            author.identity,
            KEY,
            b"new",
            sequence=author._last_own[KEY].sequence + 1,
            expires_ms=author._last_own[KEY].expires_ms,
        )
        assert forgetful._storage.put(newer, forgetful._wall_ms()) is None

        for node in nodes:
            assert values(await node.get(KEY)) == [b"new"]


async def test_what_is_withdrawn_is_found_no_more_and_cannot_be_brought_back():
    async with network(3) as (alice, bob, carol):
        await alice.store(KEY, b"value", 60)
        (kept,) = await carol.get(KEY)

        assert await alice.withdraw(KEY) == 3
        assert await bob.get(KEY) == []
        with pytest.raises(RecordRefused, match="older by 3"):
            await carol.store_record(kept)
        assert await bob.get(KEY) == []
        assert len((await bob.find(KEY)).tombstones) == 1


async def test_a_record_is_found_as_long_as_it_lives():
    clock = ManualClock()
    async with network(2, clock=clock) as (alice, bob):
        await alice.store(KEY, b"value", 60)

        clock.advance(59.9)
        assert len(await bob.get(KEY)) == 1
        clock.advance(0.1 + SKEW_MS / 1000)
        assert await bob.get(KEY) == []
        assert bob.status().num_records == 0


async def test_more_records_than_one_page_holds_are_all_found():
    async with network(2) as (alice, bob):
        people = [Identity.generate() for _ in range(30)]
        now_ms = alice._wall_ms()
        for person in people:
            record = sign_record(person, KEY, b"v" * 1_000, sequence=now_ms, expires_ms=now_ms + 60_000)
            assert alice._storage.put(record, now_ms) is None

        assert len(await bob.get(KEY)) == 30


@pytest.mark.parametrize(
    "key, value, life_s", [(b"short", b"v", 60), (KEY, b"v" * 4_001, 60), (KEY, b"v", 0), (KEY, b"v", 26 * 3600)]
)
async def test_a_value_out_of_bounds_is_refused_before_anything_is_sent(key, value, life_s):
    async with network(2) as (alice, bob):
        requests = bob._protocol.counters["requests"]

        with pytest.raises(RecordRefused, match="up to"):
            await alice.store(key, value, life_s)

        assert bob._protocol.counters["requests"] == requests
        assert alice.status().num_records == 0


async def test_a_peer_whose_clock_is_wrong_is_told_by_how_much():
    slow = ManualClock(wall_s=1_800_000_000.0)
    fast = ManualClock(wall_s=1_800_000_100.0)
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate(), clock=slow) as alice,
        DhtNode(Identity.generate(), clock=fast, bootstrap=[alice.address], client_only=True) as bob,
    ):
        with pytest.raises(RecordRefused, match=r"from-the-future by 1.*-100\.0 s"):
            await bob.store(KEY, b"value", 60)
        assert bob.status().clock_offset_s == pytest.approx(-100)
        assert alice.status().refusals == {"from-the-future": 1}


@pytest.mark.slow
async def test_dead_peers_are_asked_side_by_side_and_then_left_alone():
    """Fifteen of eighteen are silent; one after another they would cost 7.5 s."""
    async with network(4, wait_timeout_s=0.5) as nodes:
        with contextlib.ExitStack() as stack:
            dead = [stack.enter_context(silent_socket()) for _ in range(15)]
            alice = nodes[0]
            for silent in dead:
                alice._protocol.neighbourhood.answered(contact_at(silent), 0.0)
            await nodes[1].store(KEY, b"value", 60)
            for silent in dead:
                drained(silent)

            async with asyncio.timeout(5):
                assert values(await alice.get(KEY)) == [b"value"]
            assert [drained(silent) for silent in dead] == [3] * 15  # asked, and twice again

            assert await alice.store(KEY, b"mine", 60) == 4
            assert [drained(silent) for silent in dead] == [0] * 15
            assert alice.num_peers == 3


async def test_a_client_only_peer_is_served_and_in_nobody_s_table():
    async with (
        network(3) as nodes,
        DhtNode(Identity.generate(), bootstrap=[nodes[0].address], client_only=True) as client,
    ):
        assert await client.store(KEY, b"value", 60) == 3
        assert values(await client.get(KEY)) == [b"value"]

        assert client.num_peers == 3
        assert client.status().num_records == 0
        for node in nodes:
            assert client.identity.peer_id not in {
                contact.node_id for contact in node._protocol.neighbourhood.contacts()
            }


async def test_a_client_only_peer_without_peers_says_so():
    async with DhtNode(Identity.generate(), client_only=True) as client:
        with pytest.raises(BootstrapFailed, match="no peer of the DHT answered"):
            await client.store(KEY, b"value", 60)
        assert (await client.find(KEY)).num_answered == 0


async def test_when_no_bootstrap_peer_answers_each_is_named_with_what_is_wrong():
    async with asyncio.timeout(10), DhtNode(Identity.generate(), wait_timeout_s=0.1) as alice:
        with silent_socket() as dead:
            silent_address = f"127.0.0.1:{dead.getsockname()[1]}"
            with pytest.raises(BootstrapFailed) as failed:
                await alice.bootstrap([silent_address, f"{NO_NAME}:7070", alice.address], require=True)

        assert f"{silent_address} does not answer" in failed.value.message
        assert f"{NO_NAME}:7070 cannot be resolved" in failed.value.message
        assert f"{alice.address} is this node itself" in failed.value.message


async def test_what_is_no_address_is_refused_at_once_and_leaves_no_socket():
    with pytest.raises(ConfigError, match="such as"):
        await DhtNode(Identity.generate(), bootstrap=["nonsense"]).__aenter__()


async def test_a_port_in_use_is_named():
    async with DhtNode(Identity.generate()) as alice:
        with pytest.raises(ConfigError, match=str(alice.port)):
            await DhtNode(Identity.generate(), port=alice.port).__aenter__()


async def test_a_bootstrap_peer_that_comes_later_is_found_in_the_background(free_udp_port: int):
    address = f"127.0.0.1:{free_udp_port}"
    async with asyncio.timeout(10), DhtNode(Identity.generate(), bootstrap=[address], wait_timeout_s=0.1) as early:
        assert early.num_peers == 0
        assert early.status().unanswered_bootstrap == (address,)

        async with DhtNode(Identity.generate(), port=free_udp_port):
            await until(lambda: early.num_peers == 1)
            assert early.status().unanswered_bootstrap == ()


async def test_four_peers_that_start_at_once_with_one_list_form_one_network():
    """Every one is in every list; which of them is up when another asks is chance."""
    with contextlib.ExitStack() as stack_of_sockets:
        ports = [stack_of_sockets.enter_context(silent_socket()).getsockname()[1] for _ in range(4)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    nodes = [DhtNode(Identity.generate(), port=port, bootstrap=addresses, wait_timeout_s=0.2) for port in ports]
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await until(lambda: [node.num_peers for node in nodes] == [3, 3, 3, 3])


@pytest.mark.slow
async def test_pairs_that_found_each_other_first_become_one_network(free_udp_port: int):
    """alice and bob, carol and dave; all four name erin, who comes last: her address was never given up."""
    erins = f"127.0.0.1:{free_udp_port}"
    settings: dict[str, Any] = {"wait_timeout_s": 0.1}
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        alice = await stack.enter_async_context(DhtNode(Identity.generate(), bootstrap=[erins], **settings))
        bob = await stack.enter_async_context(
            DhtNode(Identity.generate(), bootstrap=[alice.address, erins], **settings)
        )
        carol = await stack.enter_async_context(DhtNode(Identity.generate(), bootstrap=[erins], **settings))
        dave = await stack.enter_async_context(
            DhtNode(Identity.generate(), bootstrap=[carol.address, erins], **settings)
        )
        await until(lambda: [node.num_peers for node in (alice, bob, carol, dave)] == [1, 1, 1, 1])

        erin = await stack.enter_async_context(DhtNode(Identity.generate(), port=free_udp_port, **settings))
        await until(lambda: all(node.num_peers == 4 for node in (alice, bob, carol, dave, erin)))


async def test_a_newcomer_is_given_what_it_should_hold():
    async with network(2) as (alice, _):
        await alice.store(KEY, b"value", 60)
        async with DhtNode(Identity.generate(), bootstrap=[alice.address]) as newcomer:
            await until(lambda: newcomer.status().num_records == 1)


async def test_a_peer_stores_its_long_lived_records_again_where_they_are_missing():
    async with network(3) as (alice, _, carol):
        await alice.store(KEY, b"long", 3600)
        await alice.store(b"s" * 20, b"short", 60)
        for record in list(carol._storage):
            carol._storage._remove(record)

        await alice._upkeep.republish()

        assert [record.value for record in carol._storage] == [b"long"]


async def test_a_peer_that_restarts_elsewhere_with_its_key_is_found_at_its_new_place():
    identity = Identity.generate()
    async with network(1, wait_timeout_s=0.1) as (alice,):
        async with DhtNode(identity, bootstrap=[alice.address]) as first:
            await until(lambda: alice.num_peers == 1)
            old_port = first.port
        async with DhtNode(identity, bootstrap=[alice.address]) as second:
            assert second.port != old_port
            ports = lambda: [contact.port for contact in alice._protocol.neighbourhood.contacts()]  # noqa: E731
            await until(lambda: ports() == [second.port])


async def test_closing_leaves_no_task_behind():
    before = asyncio.all_tasks()
    with silent_socket() as dead:
        async with network(2, wait_timeout_s=0.1) as (alice, _):
            await alice.bootstrap([f"127.0.0.1:{dead.getsockname()[1]}"])

    assert asyncio.all_tasks() <= before


async def test_ipv6_works_the_same():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with (
        asyncio.timeout(10),
        DhtNode(Identity.generate(), "::1") as alice,
        DhtNode(Identity.generate(), "::1", bootstrap=[alice.address]) as bob,
    ):
        assert await bob.store(KEY, b"value", 60) == 2
        assert values(await alice.get(KEY)) == [b"value"]


async def test_work_that_is_cancelled_before_its_first_step_is_closed():
    async def work():
        raise AssertionError("never begun")

    node = DhtNode(Identity.generate())
    async with node:
        coroutine = work()
        node._upkeep.spawn(coroutine)  # and the group ends before the loop turns
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_the_table_of_neighbours_is_told_the_nearest_first_with_what_is_known_of_each():
    async with network(3) as (alice, bob, carol):
        await until(lambda: len(alice.neighbours()) == 2)
        known = alice.neighbours()

        assert {peer.address for peer in known} == {bob.address, carol.address}
        assert {peer.node_id for peer in known} == {bob.identity.peer_id, carol.identity.peer_id}
        assert [peer.distance_bits for peer in known] == sorted(peer.distance_bits for peer in known)
        for peer in known:
            assert peer.round_trip_s is not None
            assert 0 < peer.round_trip_s < 1
            assert peer.answered_ago_s is not None
            assert 0 <= peer.answered_ago_s < 10
            assert not peer.is_silent


async def test_a_store_under_many_keys_asks_and_tells_each_peer_once():
    async with network(6) as nodes:
        asker, asked, told = nodes[0], list[tuple[Contact, int]](), list[tuple[Contact, int]]()
        ask = asker._protocol.call_find_node

        async def counted(contact: Contact, *targets: bytes) -> list[Contact] | None:
            asked.append((contact, len(targets)))
            return await ask(contact, *targets)

        async def tell(contact: Contact, targets: Sequence[bytes]) -> bool:
            told.append((contact, len(targets)))
            return True

        asker._protocol.call_find_node = counted  # type: ignore[method-assign]
        others = asker._protocol.neighbourhood.contacts()
        await asker._exchange.tell_closest([bytes([number]) * 20 for number in range(60)], tell)

        assert len(others) == 5
        assert sorted(asked) == sorted((contact, part) for contact in others for part in (50, 10))
        assert sorted(told) == sorted((contact, 60) for contact in others)


async def test_a_stranger_for_whom_the_table_has_no_place_is_pinged_once_a_minute():
    async with network(2) as (alice, bob):
        protocol, stranger = alice._protocol, Contact(bob.identity.public_key, *bob._bound)
        protocol.neighbourhood._answered_s.clear()
        protocol.neighbourhood._add = lambda entry: False  # type: ignore[method-assign]
        protocol.neighbourhood.remove(stranger)
        pinged = bob._protocol.counters["requests"]
        for expected in (1, 1):
            assert await bob._protocol.call_find_node(Contact(alice.identity.public_key, *alice._bound), KEY) == []
            await until(lambda: not protocol._checks)
            assert bob._protocol.counters["requests"] - pinged == expected
