"""Who serves what: claims, their conflicts, expiry, suspicion, and readers on other threads."""

import threading

import msgspec
import pytest

from learning_at_home.dht.records import sign_record
from learning_at_home.directory.announcement import Claim
from learning_at_home.directory.directory import Directory, RivalClaim, outranks
from learning_at_home.errors import InvalidUid, UnknownLayer
from learning_at_home.expert_uid import ExpertUid


@pytest.fixture
def directory(swarm, clock) -> Directory:
    return Directory(swarm.project, clock)


def holders(directory: Directory, prefix: str = "ffn0") -> list[bytes | None]:
    return [None if holder is None else holder.public_key for holder in directory.layer(prefix).holders]


def test_before_anything_is_known_every_cell_is_vacant_and_the_age_infinite(directory, clock):
    view = directory.layer("ffn0")

    assert (view.version, view.holders, view.num_alive) == (0, (None,) * 6, 0)
    assert view.age_s(clock.monotonic_s()) == float("inf")
    assert directory.find("ffn0.1.2") is None


def test_an_announcement_fills_its_cells_and_raises_the_version(directory, swarm):
    assert directory.feed(swarm.record(swarm.alice, {0, 5, 99}, endpoints=("tcp://10.0.0.1:7", "tcp://10.0.0.2:7")))

    view = directory.layer("ffn0")
    assert (view.version, view.num_alive) == (1, 2)
    assert holders(directory) == [swarm.alice.public_key, None, None, None, None, swarm.alice.public_key]
    address = directory.find(ExpertUid("ffn0", (1, 2)))
    assert address is not None
    assert address.endpoints == ("tcp://10.0.0.1:7", "tcp://10.0.0.2:7")


def test_a_renewal_that_changes_no_holder_changes_no_version(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}))
    before = directory.layer("ffn0")
    clock.advance(20)

    assert not directory.feed(swarm.record(swarm.alice, {0}))
    clock.advance(50)  # past the end of the first one
    assert directory.layer("ffn0") == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    "claimed_ms_of_alice, claimed_ms_of_bob, winner", [(5, 9, "alice"), (9, 5, "bob"), (7, 7, "alice")]
)
def test_of_two_claims_the_older_wins_then_the_lower_node_id(
    directory, swarm, order, claimed_ms_of_alice, claimed_ms_of_bob, winner
):
    records = [
        swarm.record(swarm.alice, {0, 1}, claimed_ms=claimed_ms_of_alice),
        swarm.record(swarm.bob, {1, 2}, claimed_ms=claimed_ms_of_bob),
    ]
    for index in order:
        directory.feed(records[index])

    key = getattr(swarm, winner).public_key
    assert holders(directory)[:3] == [swarm.alice.public_key, key, swarm.bob.public_key]


def test_the_strongest_rival_of_each_cell_is_told_without_the_asker(directory, swarm):
    directory.feed(swarm.record(swarm.alice, {1}, claimed_ms=9, name="heron"))
    directory.feed(swarm.record(swarm.bob, {1}, claimed_ms=5, name="otter"))
    directory.feed(swarm.record(swarm.carol, {1}, claimed_ms=1, state="draining"))

    rivals = directory.strongest_rivals("ffn0", [0, 1, 2], swarm.carol.public_key)

    assert {cell: (rival.name, rival.claimed_ms) for cell, rival in rivals.items()} == {1: ("otter", 5)}
    assert directory.strongest_rivals("ffn0", [1], swarm.bob.public_key)[1].name == "heron"
    assert directory.strongest_rivals("ffn0", [2], swarm.bob.public_key) == {}
    assert not outranks(6, swarm.carol.public_key, rivals[1])
    assert outranks(4, swarm.carol.public_key, rivals[1])


def test_of_equally_old_claims_exactly_one_outranks_the_other(swarm):
    def claim(person):
        return RivalClaim(person.public_key, "", 7, ())

    assert outranks(7, swarm.alice.public_key, claim(swarm.bob))
    assert not outranks(7, swarm.bob.public_key, claim(swarm.alice))


def test_an_expired_announcement_lives_no_more_for_any_reader(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}, life_s=60))
    directory.feed(swarm.record(swarm.bob, {1}, life_s=90))

    clock.advance(59.9)
    assert directory.layer("ffn0").num_alive == 2
    clock.advance(0.2)
    assert holders(directory)[:2] == [None, swarm.bob.public_key]
    clock.advance(30)
    assert directory.layer("ffn0").num_alive == 0
    assert directory.all_announcements() == ()


@pytest.mark.parametrize("state", ["draining", "paused"])
def test_a_node_that_is_not_online_serves_nothing_but_is_known(directory, swarm, clock, state):
    directory.feed(swarm.record(swarm.alice, {0}))
    clock.advance(1)
    directory.feed(swarm.record(swarm.alice, {0}, state=state))

    assert holders(directory)[0] is None
    assert [announced.announcement.state for announced in directory.all_announcements()] == [state]


def test_a_withdrawn_announcement_is_gone_and_an_older_one_does_not_bring_it_back(directory, swarm, clock):
    alive = swarm.record(swarm.alice, {0})
    directory.feed(alive)
    clock.advance(1)

    assert directory.feed(swarm.record(swarm.alice, set(), tombstone=True))
    assert not directory.feed(alive)
    assert directory.layer("ffn0").num_alive == 0
    assert directory.all_announcements() == ()


def test_a_node_without_an_endpoint_cannot_be_called_and_so_is_not_alive(directory, swarm):
    directory.feed(swarm.record(swarm.alice, {0}, endpoints=()))

    assert directory.layer("ffn0").num_alive == 0


def test_what_is_forged_foreign_or_malformed_changes_nothing(directory, swarm, clock):
    good = swarm.record(swarm.alice, {0})
    forged = msgspec.structs.replace(good, publisher=swarm.bob.public_key)
    elsewhere = sign_record(swarm.alice, b"k" * 20, good.value, sequence=good.sequence, expires_ms=good.expires_ms)
    foreign = swarm.record(swarm.alice, {0}, project="other")
    expired = swarm.record(swarm.alice, {0}, life_s=-20)

    assert not any(map(directory.feed, (forged, elsewhere, foreign, expired)))
    assert directory.layer("ffn0").version == 0
    assert directory.num_malformed == 1


def test_a_claim_of_the_same_cells_over_and_over_is_refused_unwalked(directory, swarm):
    greedy = Claim("ffn0", ((0, 1 << 22),) * 100, 0)
    value = msgspec.structs.replace(swarm.announcement({}), claims=(greedy,) * 3).to_bytes()
    like = swarm.record(swarm.alice, set())

    directory.feed(sign_record(swarm.alice, like.key, value, sequence=like.sequence, expires_ms=like.expires_ms))

    assert directory.layer("ffn0").num_alive == 0
    assert directory.num_malformed == 1


def test_an_announcement_tells_what_a_node_claims_in_every_layer(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {"ffn0": {0, 1}, "ffn1": {3}}))

    (announced,) = directory.all_announcements()

    assert announced.public_key == swarm.alice.public_key
    assert {claim.prefix: list(claim.cells()) for claim in announced.announcement.claims} == {
        "ffn0": [0, 1],
        "ffn1": [3],
    }
    assert announced.expires_ms == int((clock.wall_s() + 60) * 1000)


def test_a_peer_that_failed_is_out_for_one_second_then_two_up_to_thirty(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}, life_s=3_600))
    terms_s = []
    for _ in range(7):
        directory.report_failure(swarm.alice.public_key, clock.monotonic_s())
        assert holders(directory)[0] is None
        (suspicion,) = directory.suspected(clock.monotonic_s())
        terms_s.append(suspicion.until_s - clock.monotonic_s())
        clock.advance(terms_s[-1])
        assert holders(directory)[0] == swarm.alice.public_key
        assert directory.suspected(clock.monotonic_s()) == ()

    assert terms_s == [1, 2, 4, 8, 16, 30, 30]


def test_failures_of_calls_that_were_under_way_count_once(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}))
    for _ in range(50):
        directory.report_failure(swarm.alice.public_key, clock.monotonic_s())

    (suspicion,) = directory.suspected(clock.monotonic_s())
    assert (suspicion.failures, suspicion.until_s) == (1, clock.monotonic_s() + 1)


def test_a_success_clears_the_failures(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}, life_s=3_600))
    for _ in range(2):
        directory.report_failure(swarm.alice.public_key, clock.monotonic_s())
        clock.advance(5)
    directory.report_failure(swarm.alice.public_key, clock.monotonic_s())

    directory.report_success(swarm.alice.public_key)

    assert holders(directory)[0] == swarm.alice.public_key
    directory.report_failure(swarm.alice.public_key, clock.monotonic_s())
    assert directory.suspected(clock.monotonic_s())[0].failures == 1


async def test_a_layer_that_was_read_whole_is_not_explored_because_a_node_vanished(directory, swarm, fake_dht, clock):
    fake_dht.records = [swarm.record(swarm.alice, {0, 1})]
    await directory.refresh(fake_dht)
    assert directory.layer("ffn0").is_whole

    directory.report_failure(swarm.alice.public_key, clock.monotonic_s())

    assert directory.layer("ffn0").num_alive == 0
    assert directory.layer("ffn0").is_whole


def test_while_the_older_claimant_is_suspected_the_other_shows(directory, swarm, clock):
    directory.feed(swarm.record(swarm.alice, {0}, claimed_ms=1))
    directory.feed(swarm.record(swarm.bob, {0}, claimed_ms=2))

    directory.report_failure(swarm.alice.public_key, clock.monotonic_s())

    assert holders(directory)[0] == swarm.bob.public_key
    assert [announced.suspected for announced in directory.all_announcements()].count(True) == 1


def test_failures_of_a_peer_nobody_announced_are_not_remembered(directory, swarm, clock):
    directory.report_failure(swarm.alice.public_key, clock.monotonic_s())

    assert directory.suspected(clock.monotonic_s()) == ()


def test_unknown_layers_and_uids_outside_the_grid_are_named(directory):
    with pytest.raises(UnknownLayer, match="ffn0, ffn1"):
        directory.layer("ffn9")
    with pytest.raises(UnknownLayer):
        directory.find("ffn9.0")
    with pytest.raises(InvalidUid, match="outside the grid 2x3"):
        directory.find("ffn0.2.0")


async def test_a_refresh_asks_every_layer_and_tells_what_changed(directory, swarm, clock, fake_dht):
    fake_dht.records = [swarm.record(swarm.alice, {"ffn0": {0}, "ffn1": {1}})]

    assert await directory.refresh(fake_dht) == {"ffn0", "ffn1"}
    clock.advance(2)
    fake_dht.records.append(swarm.record(swarm.bob, {"ffn1": {2}}))
    assert await directory.refresh(fake_dht, ["ffn1"]) == {"ffn1"}

    now = clock.monotonic_s()
    assert (directory.layer("ffn0").age_s(now), directory.layer("ffn1").age_s(now)) == (2, 0)
    assert len(fake_dht.asked) == 4  # ffn0, ffn0.0, ffn1, and ffn1 again


async def test_a_refresh_learns_of_withdrawals(directory, swarm, clock, fake_dht):
    fake_dht.records = [swarm.record(swarm.alice, {0})]
    await directory.refresh(fake_dht)
    clock.advance(1)
    fake_dht.records.append(swarm.record(swarm.alice, set(), tombstone=True))

    assert await directory.refresh(fake_dht) == {"ffn0"}
    assert directory.layer("ffn0").num_alive == 0


async def test_an_answer_of_nobody_neither_forgets_nor_counts_as_fresh(directory, swarm, clock, fake_dht):
    fake_dht.records = [swarm.record(swarm.alice, {0})]
    await directory.refresh(fake_dht)
    clock.advance(5)
    fake_dht.records, fake_dht.answers = [], 0

    assert await directory.refresh(fake_dht) == frozenset()
    assert directory.layer("ffn0").num_alive == 1
    assert directory.layer("ffn0").age_s(clock.monotonic_s()) == 5


def test_readers_on_other_threads_always_see_a_whole_view(directory, swarm, clock):
    """One thread feeds and suspects, four read: a view's count, version and holders always belong together."""
    records = []
    for number in range(60):
        clock.advance(0.001)
        records.append(swarm.record(swarm.alice, {0, 1} if number % 2 else {0, 1, 2, 3}))
    problems: list[str] = []
    seen: dict[int, int] = {}
    over = threading.Event()

    def read() -> None:
        last = 0
        while not over.is_set():
            view = directory.layer("ffn0")
            if view.version < last or view.num_alive != sum(holder is not None for holder in view.holders):
                problems.append(str(view))
            if seen.setdefault(view.version, view.num_alive) != view.num_alive:
                problems.append(f"two views of version {view.version}")
            last = view.version
            directory.report_success(swarm.alice.public_key)
            directory.suspected(clock.monotonic_s())

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for record in records:
        directory.feed(record)
        directory.report_failure(swarm.alice.public_key, clock.monotonic_s())
        directory.all_announcements()
    over.set()
    for reader in readers:
        reader.join(timeout=10)

    assert problems == []
    directory.report_success(swarm.alice.public_key)
    assert directory.layer("ffn0").num_alive == 2
