from backend.live.figures import sample
from backend.live.watcher import PUBLISH_AT_LEAST_EVERY_S, PUBLISH_AT_MOST_EVERY_S, TICK_S, Watched
from tests.backend.kit import ALICE, NOW, announced, answer_probes, serving_swarm

URL = "http://here"


def watched_since(now: float) -> Watched:
    """A swarm with one reader, quiet and drawn at `now`; how long the drawing took does not matter here."""
    watched = Watched(serving_swarm(now))
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
