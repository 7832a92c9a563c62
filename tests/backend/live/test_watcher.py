from backend.live.figures import sample
from backend.live.mirror import MirrorHub
from backend.live.watcher import (
    EARLY_LOOKS_BURST,
    EARLY_LOOKS_PER_S,
    LOOK_EVERY_S,
    PUBLISH_AT_LEAST_EVERY_S,
    PUBLISH_AT_MOST_EVERY_S,
    TICK_S,
    Watched,
)
from learning_at_home.identity import Identity
from tests.backend.kit import (
    ALICE,
    CAROL,
    NOW,
    announced,
    answer_probes,
    expert,
    introduce,
    new_swarm,
    serving_swarm,
    telemetry,
)

URL = "http://here"


def watched_since(now: float) -> Watched:
    """A swarm with one reader, quiet and drawn at `now`; how long the drawing took does not matter here."""
    watched = Watched(serving_swarm(now), MirrorHub("digits", CAROL))
    watched.swarm.advance(now)
    sample(watched.swarm, now)
    watched.sampled_s = watched.advanced_s = now
    watched.hub.join(watched.current_view(URL, now), now)
    watched.rested_s = 0.0
    return watched


async def published_s(watched: Watched, *, until: float, change_at: float | None = None) -> list[float]:
    """When deltas were published, of ticks from NOW on."""
    times, now = [], NOW
    while now < until:
        now += TICK_S
        if change_at is not None and now >= change_at:
            change_at = None
            watched.swarm.directory_seen([announced(ALICE, end=6, at_s=now)], now)
            answer_probes(watched.swarm, now)
        watched.sampled_s = now  # charts are not what is tested here
        watched.tick(URL, now)
        watched.rested_s = 0.0
        if watched.hub.published_s == now:
            times.append(now - NOW)
    return times


async def test_a_quiet_swarm_is_published_often_enough_for_a_browser_to_know_that_it_is_watched():
    (first, *_) = await published_s(watched_since(NOW), until=NOW + 3)

    assert PUBLISH_AT_LEAST_EVERY_S <= first < 2.0


async def test_a_change_that_comes_just_after_a_drawing_is_published_as_soon_as_one_may_be_drawn_again():
    (first, *_) = await published_s(watched_since(NOW), until=NOW + 3, change_at=NOW + 0.01)

    assert first <= PUBLISH_AT_MOST_EVERY_S + TICK_S


async def test_a_swarm_that_took_long_to_draw_rests():
    watched = watched_since(NOW)
    watched.tick(URL, NOW + 5)

    assert watched.rested_s > NOW + 5
    watched.rested_s = NOW + 7
    before = watched.hub.published_s
    watched.tick(URL, NOW + 6.9)
    assert watched.hub.published_s == before


def looks_within(seconds: float, watched: Watched, change) -> int:
    """How often the DHT is asked while `change` is made ten times per second."""
    looks = 0
    for tenth in range(int(seconds * 10)):
        now = NOW + tenth / 10
        change(tenth, now)
        if watched.wants_look(now):
            watched.looked_s, watched.swarm.wants_directory = now, False
            looks += 1
    return looks


def test_a_node_that_appears_has_the_dht_asked_at_once():
    watched = Watched(new_swarm(), MirrorHub("digits", CAROL))
    watched.looked_s, watched.swarm.wants_directory = NOW - 1, False
    assert not watched.wants_look(NOW)
    introduce(watched.swarm, ALICE, NOW)

    assert watched.wants_look(NOW)


def test_a_node_that_changes_its_mind_all_the_time_does_not_have_the_dht_crawled_each_time():
    watched = watched_since(NOW)
    (node,) = watched.swarm.nodes.values()

    def change(tenth: int, now: float) -> None:
        watched.swarm.node_told(node, telemetry(expert(), state="paused" if tenth % 2 else "online"), now)

    assert looks_within(600, watched, change) <= 600 / LOOK_EVERY_S + 600 * 0.1 + 30


def test_a_node_that_never_announces_what_it_tells_of_is_looked_for_often_only_at_first():
    watched = Watched(new_swarm(), MirrorHub("digits", CAROL))
    node = introduce(watched.swarm, ALICE, NOW)

    def change(_tenth: int, now: float) -> None:
        watched.swarm.node_told(node, telemetry(expert(99)), now)

    assert looks_within(600, watched, change) <= 600 / LOOK_EVERY_S + EARLY_LOOKS_BURST + 30


def test_many_strangers_together_have_the_dht_asked_no_more_often_than_a_project_may():
    watched = Watched(new_swarm(), MirrorHub("digits", CAROL))

    def change(tenth: int, now: float) -> None:
        introduce(watched.swarm, Identity(tenth.to_bytes(32, "big")), now)

    looks = looks_within(100, watched, change)
    assert looks <= 100 * EARLY_LOOKS_PER_S + EARLY_LOOKS_BURST + 100 / LOOK_EVERY_S
