"""Trainers and runs: nobody displaces a trainer that is here."""

import pytest

from backend.live import run_book as run_book_module
from backend.live.run_book import RunBook
from backend.live.run_memory import MAX_RUNS, MAX_RUNS_PER_TRAINER, RUN_IS_LIVE_S
from learning_at_home.errors import NodeOverloaded
from tests.backend.kit import ALICE, BOB, CAROL, NOW, new_swarm, report


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def names(book: RunBook) -> list[str]:
    return [run.name for run in book.runs.values()]


def test_a_trainer_with_many_runs_loses_its_own_oldest():
    book = RunBook()
    alice, bob = (book.introduced(each.public_key, each.name, NOW) for each in (ALICE, BOB))
    book.reported(bob, report(1, run="of bob"), NOW)
    for number in range(MAX_RUNS_PER_TRAINER + 2):
        book.reported(alice, report(1, run=f"of alice {number}"), NOW + 1 + number)

    assert names(book) == ["of bob", *(f"of alice {number}" for number in range(2, MAX_RUNS_PER_TRAINER + 2))]


def test_a_full_book_forgets_runs_of_those_who_are_away_and_never_of_those_who_are_here():
    book = RunBook()
    away, *here = (book.introduced(key(number), "", NOW) for number in range(MAX_RUNS))
    for trainer in (away, *here):
        assert book.reported(trainer, report(1), NOW) is not None
    newcomer = book.introduced(CAROL.public_key, CAROL.name, NOW)
    assert book.reported(newcomer, report(1), NOW + 1) is None

    book.lost(away, NOW + 2)
    assert book.reported(newcomer, report(1), NOW + 3) is not None
    assert (away.id, "first") not in book.runs
    assert len(book.runs) == MAX_RUNS


def test_a_run_is_live_while_it_is_reported_and_its_trainer_is_here():
    book = RunBook()
    alice = book.introduced(ALICE.public_key, ALICE.name, NOW)
    run = book.reported(alice, report(1), NOW)
    assert run is not None
    book.advance(NOW + RUN_IS_LIVE_S)
    assert run.live
    book.advance(NOW + RUN_IS_LIVE_S + 1)
    assert not run.live

    book.reported(alice, report(2), NOW + 100)
    assert run.live
    book.lost(alice, NOW + 101)
    assert not run.live


def test_a_trainer_that_is_away_makes_room_for_one_that_comes(monkeypatch):
    monkeypatch.setattr(run_book_module, "MAX_TRAINERS", 2)
    book = RunBook()
    alice = book.introduced(ALICE.public_key, ALICE.name, NOW)
    book.introduced(BOB.public_key, BOB.name, NOW)
    with pytest.raises(NodeOverloaded):
        book.introduced(CAROL.public_key, CAROL.name, NOW)

    book.lost(alice, NOW)
    book.introduced(CAROL.public_key, CAROL.name, NOW)
    assert alice.id not in book.trainers


def test_many_runs_of_one_trainer_are_few_events():
    swarm = new_swarm()
    trainer = swarm.trainer_introduced(ALICE.public_key, ALICE.name, NOW)
    for number in range(100):
        swarm.trainer_reported(trainer, report(1, run=f"{number}"), NOW)

    assert len(swarm.events) == 5


def test_many_trainers_fill_no_event_list():
    swarm = new_swarm()
    for number in range(100):
        trainer = swarm.trainer_introduced(key(number), "", NOW)
        swarm.trainer_reported(trainer, report(1), NOW)

    assert len(swarm.events) == 20
