"""Views, their differences, and what a browser makes of them."""

import itertools
import random

import msgspec
import pytest

from backend.live.delta import NOTHING, apply, difference, merge
from backend.live.figures import sample
from backend.live.hub import HOPELESS_S, Hub
from backend.live.portrait import view
from dashboard.view import Change, ProjectView
from learning_at_home.errors import NodeOverloaded
from learning_at_home.project import LayerSpec
from tests.backend.kit import (
    ALICE,
    BOB,
    CAROL,
    DIGITS,
    NOW,
    announced,
    answer_probes,
    expert,
    introduce,
    new_swarm,
    report,
    telemetry,
)


def history(seed: int, length: int = 30) -> list[ProjectView]:
    """Views of a swarm to which all kinds of things happen."""
    chance = random.Random(seed)
    swarm = new_swarm()
    trainer = swarm.trainer_introduced(CAROL.public_key, "carol-trains", NOW)
    views = []
    for number in range(length):
        now = NOW + number
        identity = chance.choice([ALICE, BOB])
        match chance.randrange(6):
            case 0:
                swarm.directory_seen([announced(identity, at_s=now), announced(BOB, first=3, end=8, at_s=now)], now)
            case 1:
                node = introduce(swarm, identity, now)
                rows = chance.randrange(1_000)
                swarm.node_told(node, telemetry(expert(chance.randrange(8), rows_forward=rows, p95_ms=5.0)), now)
            case 2:
                for node in list(swarm.nodes.values()):
                    swarm.node_socket_lost(node, now)
            case 3:
                swarm.trainer_reported(trainer, report(number, run=chance.choice("ab"), loss=1 / (number + 1)), now)
            case 4:
                swarm.directory_seen([], now)
            case _:
                sample(swarm, now)
        answer_probes(swarm, now, answered=chance.random() < 0.7)
        swarm.advance(now)
        views.append(view(swarm, "http://here", now))
    return views


def without_window(drawn: ProjectView) -> ProjectView:
    """A browser forgets old points by itself, and keeps a curve's points that the server has thinned."""
    charts = {
        name: msgspec.structs.replace(
            series, x=series.x[-1:], lines={line: values[-1:] for line, values in series.lines.items()}
        )
        for name, series in drawn.charts.items()
    }
    return msgspec.structs.replace(drawn, charts=charts)


@pytest.mark.parametrize("seed", range(8))
def test_changes_applied_one_by_one_show_what_the_server_has(seed):
    views = history(seed)
    shown = views[0]
    for before, after in itertools.pairwise(views):
        shown = apply(shown, difference(before, after), after.at_s)

        assert without_window(shown) == without_window(after)


@pytest.mark.parametrize("seed", range(8))
def test_merged_changes_show_the_same(seed):
    views = history(seed)
    merged = NOTHING
    for before, after in itertools.pairwise(views):
        merged = merge(merged, difference(before, after))

    assert without_window(apply(views[0], merged, views[-1].at_s)) == without_window(views[-1])


def test_nothing_changed_is_an_empty_change():
    drawn = history(1)[-1]

    assert difference(drawn, msgspec.structs.replace(drawn, at_s=drawn.at_s + 1)) == NOTHING
    assert msgspec.json.encode(NOTHING) == b"{}"


def test_a_new_record_sends_its_layers_whole():
    swarm = new_swarm()
    before = view(swarm, "http://here", NOW)
    swarm.record = type(DIGITS)(id="digits", layers=(LayerSpec(prefix="new", grid=(2,)),))
    swarm.cells.clear()
    after = view(swarm, "http://here", NOW)

    change = difference(before, after)
    assert change.layers == after.layers
    assert apply(before, change, NOW).layers == after.layers


def read(change: msgspec.Raw) -> Change:
    return msgspec.json.decode(change, type=Change)


async def test_readers_get_a_snapshot_and_then_deltas_in_sequence():
    views = history(2)
    hub = Hub()
    reader = hub.join(views[0], NOW)
    shown, sequence = reader.snapshot.view, reader.snapshot.sequence
    for number, drawn in enumerate(views[1:]):
        hub.publish(drawn, NOW + number)
        delta = reader.take()
        assert delta is not None
        sequence += 1
        assert delta.sequence == sequence
        shown = apply(shown, read(delta.change), delta.at_s)

    assert without_window(shown) == without_window(views[-1])
    assert reader.take() is None


async def test_a_reader_who_joins_later_starts_from_what_is_shown_then():
    views = history(3)
    hub = Hub()
    early = hub.join(views[0], NOW)
    late = hub.join(views[5], NOW + 5)
    hub.publish(views[6], NOW + 6)

    for reader, start in ((early, views[0]), (late, views[5])):
        delta = reader.take()
        assert delta is not None
        assert delta.sequence == reader.snapshot.sequence + 1
        assert without_window(apply(start, read(delta.change), delta.at_s)) == without_window(views[6])


async def test_a_slow_readers_deltas_are_merged_into_one():
    views = history(4)
    hub = Hub()
    reader = hub.join(views[0], NOW)
    for drawn in views[1:]:
        hub.publish(drawn, NOW + 1)

    delta = reader.take()
    assert delta is not None
    assert delta.sequence == reader.snapshot.sequence + 1
    assert reader.num_merged == len(views) - 2
    assert without_window(apply(views[0], read(delta.change), delta.at_s)) == without_window(views[-1])
    assert reader.take() is None


async def test_a_hopeless_reader_is_cut_and_the_others_are_not():
    views = history(5)
    hub = Hub()
    slow, quick = hub.join(views[0], NOW), hub.join(views[0], NOW)
    for number, drawn in enumerate(views[1:]):
        hub.publish(drawn, NOW + number)
        quick.take()

    assert len(views) > HOPELESS_S
    assert slow.cut == "slow"
    assert quick.cut == ""


async def test_a_closed_hub_lets_its_readers_go_and_takes_no_more():
    hub = Hub()
    drawn = history(6)[0]
    reader = hub.join(drawn, NOW)
    hub.close()

    await reader.wait()
    assert reader.cut == "closing"
    with pytest.raises(NodeOverloaded):
        hub.join(drawn, NOW)
