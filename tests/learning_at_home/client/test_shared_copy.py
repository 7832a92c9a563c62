"""What a trainer's copy of a chunk makes of each thing that may happen to a change. The host adds changes up."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from hypothesis import given
from hypothesis import strategies as st

from learning_at_home.client.shared_copy import ChunkCopy, Doubtful

START = torch.tensor([1.0, 2.0])
TRAINED = torch.tensor([0.5, -0.25])  # by this trainer
OTHERS = torch.tensor([4.0, 8.0])


def copy_at(version: int = 1) -> ChunkCopy:
    return ChunkCopy(0, START, version)


def test_a_change_that_nobody_got_is_part_of_the_next_one():
    copy = copy_at()

    assert torch.equal(copy.change(START + TRAINED), TRAINED)
    assert torch.equal(copy.change(START + TRAINED + TRAINED), 2 * TRAINED)


def test_a_change_that_was_applied_is_not_sent_again():
    copy = copy_at()
    model = START + TRAINED

    copy.sent(model, contained_in=2)

    assert not copy.change(model).any()


def test_a_state_that_contains_the_change_replaces_it():
    copy = copy_at()
    model = START + TRAINED
    copy.sent(model, contained_in=2)

    copy.take(START + TRAINED + OTHERS, 3)

    assert torch.equal(copy.moved(model), START + TRAINED + OTHERS)
    assert copy.version == 3


def test_a_state_without_the_change_does_not_set_the_model_back():
    copy = copy_at()
    model = START + TRAINED
    copy.sent(model, contained_in=5)

    copy.take(START + OTHERS, 4)
    model = copy.moved(model)

    assert torch.equal(model, START + OTHERS + TRAINED)
    assert not copy.change(model).any()

    copy.take(START + OTHERS + 0.5 * TRAINED, 5)  # an update by half of it

    assert torch.equal(copy.moved(model), START + OTHERS + 0.5 * TRAINED)


def test_what_is_trained_during_an_exchange_stays_and_is_sent_next():
    copy = copy_at()
    copy.sent(START + TRAINED, contained_in=2)
    copy.take(START + TRAINED + OTHERS, 3)

    model = copy.moved(START + TRAINED + 10)

    assert torch.equal(model, START + TRAINED + OTHERS + 10)
    assert torch.equal(copy.change(model), torch.full((2,), 10.0))


def test_the_model_moves_once_for_two_states():
    copy = copy_at()
    model = START + TRAINED
    copy.take(START + OTHERS, 2)
    copy.take(START + 2 * OTHERS, 3)

    model = copy.moved(model)

    assert torch.equal(model, START + 2 * OTHERS + TRAINED)
    assert torch.equal(copy.moved(model), model)


def test_changes_that_one_update_will_hold_wait_together():
    copy = copy_at()
    copy.sent(START + TRAINED, contained_in=2)
    copy.sent(START + 3 * TRAINED, contained_in=2)

    copy.take(START, 1)

    assert torch.equal(copy.moved(START + 3 * TRAINED), START + 3 * TRAINED)


def test_what_a_codec_lost_is_part_of_the_next_change():
    copy = copy_at()
    lost = torch.tensor([0.125, 0.0])
    model = START + TRAINED

    copy.sent(model, contained_in=2, lost_L=lost)

    assert torch.equal(copy.change(model), lost)


def test_after_a_fill_nothing_is_left_to_send_and_nothing_waits():
    copy = copy_at(7)
    copy.sent(START + TRAINED, contained_in=9)

    copy.gave(START + 2 * TRAINED, 7, origin=5)

    assert not copy.change(START + 2 * TRAINED).any()
    copy.take(OTHERS, 8)
    assert torch.equal(copy.moved(START + 2 * TRAINED), OTHERS)


def test_a_change_in_doubt_that_is_given_up_is_not_taken_back():
    copy = copy_at()
    copy.doubtful = Doubtful(None, START + TRAINED, None, 0.0)

    assert copy.give_up()
    assert copy.doubtful is None
    assert not copy.change(copy.reference_L).any()
    copy.take(START + TRAINED, 2)  # it had been applied
    assert torch.equal(copy.moved(START + TRAINED), START + TRAINED)


def test_a_models_rounding_is_no_change():
    copy = copy_at()
    copy.take(OTHERS + 0.001, 2)
    wanted = copy.moved(START)
    written = OTHERS

    copy.rounded(wanted, written)

    assert torch.allclose(copy.change(written), torch.zeros(2), atol=1e-6)


def test_a_state_of_another_fill_has_nothing_of_what_was_sent_before():
    copy = copy_at(3)
    copy.sent(START + TRAINED, contained_in=9)
    model = START + TRAINED + 10  # ten were trained since

    copy.adopt(OTHERS, 4, origin=5)

    model = copy.moved(model)
    assert torch.equal(model, OTHERS + 10)
    assert torch.equal(copy.change(model), torch.full((2,), 10.0))
    assert (copy.version, copy.origin) == (4, 5)


Fate = Literal["answered", "refused", "answer lost", "never came"]


@dataclass
class Host:
    """Adds up `enough` changes, then makes an update; remembers the ids that it has taken."""

    enough: int
    values: float = 0.0
    version: int = 1
    waiting: list[tuple[int, float]] = field(default_factory=list)  # by id
    taken: dict[int, int] = field(default_factory=dict)  # by id, the version that contains it

    def take(self, number: int, change: float) -> int:
        if number not in self.taken:
            self.taken[number] = self.version + 1
            self.waiting.append((number, change))
            if len(self.waiting) >= self.enough:
                self.flush()
        return self.taken[number]

    def flush(self) -> None:
        if self.waiting:
            self.values += sum(change for _, change in self.waiting)
            self.version += 1
            self.waiting = []


class Trainer:
    """What a round does with a copy, without the network."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.copy = ChunkCopy(0, torch.zeros(1), 1)
        self.model = torch.zeros(1)
        self.numbers: set[int] = set()  # ids of its changes

    def exchange(self, number: int, fate: Fate) -> None:
        copy = self.copy
        if copy.doubtful is not None:
            again, change = copy.doubtful.call
            model = copy.doubtful.model_L
        else:
            again, change, model = number, float(copy.change(self.model)), self.model.clone()
            self.numbers.add(number)
        if fate == "refused":
            copy.doubtful = None if again not in self.host.taken else copy.doubtful  # it knows what it has taken
        elif fate == "never came" or fate == "answer lost":
            if fate == "answer lost":
                self.host.take(again, change)
            copy.doubtful = Doubtful((again, change), model, None, 0.0)
        else:
            copy.sent(model, self.host.take(again, change))
        if copy.doubtful is None and self.host.version > copy.version:
            copy.take(torch.full((1,), self.host.values), self.host.version)
            self.model = copy.moved(self.model)


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(-50, 50),
            st.sampled_from(["answered", "refused", "answer lost", "never came"]),
        ),
        max_size=30,
    ),
)
def test_whatever_happens_every_change_counts_exactly_once(enough, events):
    host = Host(enough)
    trainers = [Trainer(host), Trainer(host)]
    trained = 0.0
    for number, (who, by, fate) in enumerate(events):
        trainers[who].model = trainers[who].model + by
        trained += by
        trainer = trainers[who]
        trainer.exchange(number, fate)
        if trainer.copy.doubtful is None and not trainer.copy.change(trainer.model).any():
            own = sum(change for number, change in host.waiting if number in trainer.numbers)
            assert float(trainer.model) == host.values + own  # what the swarm has, and what it will have of this one's

    for number in range(3):  # settle what is in doubt, send the rest, take what the others did
        for who, trainer in enumerate(trainers):
            trainer.exchange(1_000 + 10 * number + who, "answered")
        host.flush()
    for who, trainer in enumerate(trainers):
        trainer.exchange(2_000 + who, "answered")

    assert host.values == trained
    assert [float(trainer.model) for trainer in trainers] == [trained, trained]


def test_a_host_that_says_a_change_is_far_off_cannot_make_it_count_twice():
    copy = copy_at()
    model = START
    for promised in (1_000, 2_000, 3_000):
        model = model + TRAINED
        copy.sent(model, contained_in=promised)
        copy.heard(1)
    assert len(copy._waiting) == 1

    copy.take(START + 3 * TRAINED, 2)

    assert torch.equal(copy.moved(model), START + 3 * TRAINED)
