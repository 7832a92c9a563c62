"""The beam search: its beams against brute force, what it reads and reads again, and its round trips when cold."""

import asyncio
import itertools
import random
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.directory.announcement import Announcement, Claim, spans_of
from learning_at_home.directory.beam_search import REMEMBERED_S, Beams
from learning_at_home.directory.directory import Directory
from learning_at_home.directory.publisher import publish
from learning_at_home.expert_uid import Grid
from learning_at_home.project import LayerSpec, ProjectRecord
from learning_at_home.testing import SimulatedDht, SimulatedNetwork, run_in_virtual_time
from learning_at_home.testing.virtual_time import LoopClock

ROUND_TRIP_S = 0.1


def found_by_beams(
    scores: list[list[float]], grid: Grid, width: int, living: Collection[tuple[int, ...]]
) -> list[list]:
    """Per row the prefixes of full length that are left."""
    beams = Beams(scores, grid, width)
    for depth in range(len(grid.shape)):
        beams.advance(
            {prefix: sorted({cell[depth] for cell in living if cell[:depth] == prefix}) for prefix in beams.prefixes}
        )
    return [[prefix for _, prefix in beam] for beam in beams._beams]


@given(
    st.lists(st.lists(st.integers(-9, 9).map(float), min_size=8, max_size=8), min_size=1, max_size=4),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 1)), min_size=1),
)
def test_beams_as_wide_as_the_grid_find_what_brute_force_finds(scores, living):
    grid = Grid((4, 2, 2))

    found = found_by_beams(scores, grid, 16, living)

    for row, of_row in zip(scores, found, strict=True):
        assert of_row == sorted(living, key=lambda cell: (-(row[cell[0]] + row[4 + cell[1]] + row[6 + cell[2]]), cell))


def test_with_all_cells_alive_beams_of_k_find_the_best_k():
    grid, chance = Grid((16, 16)), random.Random(1)
    scores = [[chance.gauss(0, 1) for _ in range(32)] for _ in range(20)]
    cells = set(itertools.product(range(16), range(16)))

    found = found_by_beams(scores, grid, 4, cells)

    for row, of_row in zip(scores, found, strict=True):
        assert of_row == sorted(cells, key=lambda cell: (-(row[cell[0]] + row[16 + cell[1]]), cell))[:4]


def test_the_prefixes_that_most_rows_want_are_read_first():
    beams = Beams([[1.0, 0.0, 9.0, 8.0], [0.0, 1.0, 9.0, 8.0], [0.0, 1.0, 8.0, 9.0]], Grid((2, 2)), 1)
    beams.advance({(): [0, 1]})

    assert beams.prefixes == [(1,), (0,)]
    assert beams.wanted((1,)) in ((0, 1), (1, 0))
    assert beams.wanted((0,)) == (0,)


@pytest.fixture
def searched(swarm, fake_dht, clock) -> Directory:
    fake_dht.records = [
        swarm.record(swarm.alice, {0, 1, 2}),
        swarm.record(swarm.bob, {3}),
        swarm.record(swarm.carol, {5}),
    ]
    return Directory(swarm.project, clock)


async def test_only_what_the_rows_want_is_read_and_only_once_in_its_time(searched, fake_dht, clock, swarm):
    of_the_first_line = [[5.0, 0.0, 1.0, 2.0, 3.0]]

    assert await searched.explore(fake_dht, "ffn0", of_the_first_line, 1)
    assert searched.find("ffn0.0.2").public_key == swarm.alice.public_key
    assert searched.layer("ffn0").num_alive == 3  # alice's record tells of all her cells; bob was never asked about
    assert not searched.layer("ffn0").is_whole
    num_asked = len(fake_dht.asked)
    assert num_asked == 2

    assert not await searched.explore(fake_dht, "ffn0", of_the_first_line, 1)
    assert len(fake_dht.asked) == num_asked
    clock.advance(REMEMBERED_S + 0.1)
    assert await searched.explore(fake_dht, "ffn0", of_the_first_line, 1)


async def test_other_rows_have_other_cells_read_of_a_prefix_that_is_known(searched, fake_dht):
    await searched.explore(fake_dht, "ffn0", [[0.0, 5.0, 3.0, 0.0, 0.0]], 1)
    assert searched.layer("ffn0").num_alive == 1
    num_asked = len(fake_dht.asked)

    assert await searched.explore(fake_dht, "ffn0", [[0.0, 5.0, 0.0, 0.0, 3.0]], 1)
    assert searched.layer("ffn0").num_alive == 2
    assert len(fake_dht.asked) == num_asked + 1


async def test_what_nobody_answered_is_asked_again(searched, fake_dht):
    fake_dht.answers = 0
    assert await searched.explore(fake_dht, "ffn0", [[0.0] * 5], 2)
    assert await searched.explore(fake_dht, "ffn0", [[0.0] * 5], 2)


def test_cold_the_best_of_1024_experts_are_found_in_four_round_trips():
    """64 nodes with 16 experts each; the searcher has just joined, and knows a bootstrap peer's neighbours."""
    network = SimulatedNetwork(one_way_s=ROUND_TRIP_S / 2, jitter=0.0, seed=5)
    project = ProjectRecord(id="digits", layers=(LayerSpec(prefix="ffn0", grid=(32, 32)),))
    chance = random.Random(5)
    scores = [[chance.gauss(0, 1) for _ in range(64)] for _ in range(32)]
    cells = list(range(1_024))
    chance.shuffle(cells)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with SimulatedDht(network) as dht:
            nodes = await dht.grow(64)
            for number, node in enumerate(nodes):
                claim = Claim("ffn0", spans_of(set(cells[number * 16 : number * 16 + 16])), 0)
                announcement = Announcement(
                    project="digits",
                    name="node",
                    endpoints=("tcp://10.0.0.1:1",),
                    state="online",
                    issued_ms=0,
                    claims=(claim,),
                )
                await publish(node, project, announcement)
            reader = await dht.join(client_only=True)
            directory = Directory(project, LoopClock(loop))
            began_s = loop.time()
            assert await directory.explore(reader, "ffn0", scores, 4)
            took_s = loop.time() - began_s
            for row in scores:
                best = sorted(range(1_024), key=lambda cell: -(row[cell // 32] + row[32 + cell % 32]))[:4]
                assert all(directory.layer("ffn0").holders[cell] is not None for cell in best)
            return took_s

    assert run_in_virtual_time(main(), network) <= 4.01 * ROUND_TRIP_S
