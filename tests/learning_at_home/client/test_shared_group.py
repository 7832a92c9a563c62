"""Trainers of one project share their models' parameters: real hosts behind real sockets, without a DHT."""

import logging
import queue
from collections.abc import Callable

import pytest
import torch
from torch import nn

from learning_at_home.client.dmoe import DMoE
from learning_at_home.client.fanout import FanOut
from learning_at_home.client.probing import Prober
from learning_at_home.client.shared_group import SharedParameters
from learning_at_home.client.shared_start import LOOK_AGAIN_S
from learning_at_home.errors import (
    ConfigError,
    ExpertFailed,
    LearningAtHomeError,
    NonFiniteTensor,
    NotEnoughExperts,
    ParametersMissing,
    SpecMismatch,
    StaleRequest,
)
from learning_at_home.project import LayerSpec, OptimizerSpec
from learning_at_home.shared_parameters import HEADER_SIZE, MAX_VERSION, NOTE_SIZE, Meaning, Note
from learning_at_home.wire.messages import Failure, Reply, Work
from node_agent.runtime.host import Host
from tests.learning_at_home.client.small_swarm import SmallSwarm, layer

ADDING = OptimizerSpec(name="sgd", learning_rate=1.0)  # every change counts in full
DEADLINE_S = 5.0
SHORT_S = 0.4  # of rounds in which somebody stays silent


@pytest.fixture
def swarm(small_swarm: Callable[[LayerSpec], SmallSwarm]) -> SmallSwarm:
    """Three chunks on two hosts: 0 and 2 on the first, 1 on the second."""
    made = small_swarm(trunk())
    made.add_host([0, 2])
    made.add_host([1])
    return made


def trunk(optimizer: OptimizerSpec = ADDING) -> LayerSpec:
    return layer(
        (3,), prefix="trunk", architecture="parameters", hidden_size=40, optimizer=optimizer, deadline_s=DEADLINE_S
    )


def model() -> nn.Linear:
    """100 numbers with a fresh start each time: 80 in chunks 0 and 1, ten weights and ten biases in chunk 2."""
    return nn.Linear(9, 10, dtype=torch.float64)


def join(swarm: SmallSwarm, own: nn.Module, **options: object) -> SharedParameters:
    return swarm.swarm.shared("trunk", own, every=1, **options)  # type: ignore[arg-type]


def train(own: nn.Module, by: float) -> None:
    """What an optimizer does, in numbers that add up exactly."""
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(by)


def numbers(own: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in own.parameters()]).clone()


def assert_near(own: nn.Module, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(numbers(own), wanted, rtol=0, atol=1e-12)


def replace_host(swarm: SmallSwarm, number: int, cells: list[int]) -> Host:
    """The host is lost; another node takes its cells, with nothing in them."""
    swarm.nodes[number].stop()
    withdraw(swarm, number)
    return swarm.add_host(cells)


def withdraw(swarm: SmallSwarm, number: int) -> None:
    swarm.announce(swarm.identities[number], 1, [], state="draining")


def test_the_first_fills_the_swarm_and_the_next_starts_from_it(swarm):
    first, second = model(), model()
    start = numbers(first)

    filled, joined = join(swarm, first), join(swarm, second)

    assert torch.equal(numbers(first), start)
    assert torch.equal(numbers(second), start)
    assert filled.stats().fills == 3
    assert joined.stats().fills == 0
    assert joined.stats().versions == (1, 1, 1)


def test_hosts_that_take_no_start_are_told_with_their_reason_and_are_not_asked_without_pause(small_swarm):
    def refuses(work: Work, tensors: list[torch.Tensor]) -> torch.Tensor | ExpertFailed:
        if work.operation == "backward":
            return ExpertFailed("this disk is full")
        held = torch.zeros(1, HEADER_SIZE + 40, dtype=torch.float64)
        held[0, :NOTE_SIZE] = torch.tensor(Note(Meaning.HELD, 0, 0, 0).to_row())
        return held

    swarm = small_swarm(trunk())
    node = swarm.add_wilful([0, 1, 2], refuses)

    with pytest.raises(
        NotEnoughExperts, match=r"did not take this trainer's start.*trunk.0: this disk is full"
    ) as raised:
        join(swarm, model(), timeout_s=SHORT_S)

    assert isinstance(raised.value.causes["trunk.0"], ExpertFailed)
    assert sum(work.operation == "backward" for work in node.seen) <= 1 + SHORT_S / LOOK_AGAIN_S


def test_two_trainers_come_to_one_state_that_holds_the_work_of_both(swarm):
    first, second = model(), model()
    one, two = join(swarm, first), join(swarm, second)
    start = numbers(first)

    train(first, 0.5)
    train(second, 0.25)
    one.step()
    two.step()
    one.step()

    assert torch.equal(numbers(first), numbers(second))
    assert_near(first, start + 0.75)
    assert two.stats().staleness == 1.0


def test_who_joins_late_or_again_continues_from_the_swarms_state(swarm):
    first = model()
    shared = join(swarm, first)
    train(first, 0.5)
    shared.step()
    train(first, 100.0)  # ... and is killed before it was sent
    del shared

    again = model()
    join(swarm, again)

    assert_near(again, numbers(first) - 100.0)


def test_only_every_nth_step_exchanges(swarm):
    shared = swarm.swarm.shared("trunk", model(), every=3)

    for _ in range(7):
        shared.step()

    assert shared.stats().rounds == 2


def test_another_model_is_refused_by_the_swarm_and_changes_nothing(swarm):
    first = model()
    join(swarm, first)
    start = numbers(first)

    with pytest.raises(SpecMismatch, match="other names or shapes"):
        join(swarm, nn.Linear(10, 9, dtype=torch.float64))

    assert torch.equal(numbers(first), start)
    assert join(swarm, model()).stats().versions == (1, 1, 1)


def test_nan_is_not_sent_and_the_model_can_go_on_from_the_swarms_state(swarm):
    first = model()
    shared = join(swarm, first)
    start = numbers(first)
    with torch.no_grad():
        first.bias[3] = float("nan")

    with pytest.raises(NonFiniteTensor, match="layer trunk: bias holds NaN"):
        shared.step()
    assert shared.stats().changes == 0

    shared.reset()
    assert torch.equal(numbers(first), start)
    train(first, 0.5)
    shared.step()
    assert_near(first, start + 0.5)


def test_a_host_that_is_away_keeps_its_change_for_later(swarm):
    first, second = model(), model()
    one, two = join(swarm, first), join(swarm, second)
    start = numbers(first)
    withdraw(swarm, 1)

    train(first, 0.5)
    assert not one.sync()
    assert set(one.stats().causes) == {1}
    assert_near(first, start + 0.5)  # the trainer goes on with its own

    swarm.announce(swarm.identities[1], swarm.nodes[1].server.port, [1])
    assert one.sync()
    assert two.sync()
    assert_near(second, start + 0.5)
    assert one.stats().causes == {}


def test_an_empty_host_is_filled_from_a_trainers_copy_and_that_is_told(swarm, caplog):
    first = model()
    shared = join(swarm, first)
    train(first, 0.5)
    shared.sync()
    replace_host(swarm, 1, [1])

    train(first, 0.5)
    with caplog.at_level(logging.WARNING):
        assert shared.sync()

    assert "the hosts of chunks 1 have nothing, or were filled by others since" in caplog.text
    assert (shared.stats().set_back, shared.stats().fills) == (1, 4)
    second = model()
    join(swarm, second)
    assert torch.equal(numbers(second), numbers(first))


def test_a_newcomer_does_not_fill_what_others_have_trained(swarm):
    first = model()
    shared = join(swarm, first)
    train(first, 0.5)
    shared.sync()
    replace_host(swarm, 1, [1])

    with pytest.raises(ParametersMissing, match=r"hosts of trunk.1 have nothing.*fill_missing=True"):
        join(swarm, model(), timeout_s=SHORT_S)

    # Nobody with a copy is left, and somebody says so:
    last = model()
    start = numbers(last)
    join(swarm, last, fill_missing=True)
    assert torch.equal(numbers(last)[:40], numbers(first)[:40])
    assert torch.equal(numbers(last)[40:80], start[40:80])


def test_a_fresh_start_in_a_swarm_that_lost_everything_yields_to_the_trained_copy(swarm, caplog):
    old, fresh = model(), model()
    trained = join(swarm, old)
    train(old, 0.5)
    trained.sync()
    replace_host(swarm, 0, [0, 2])
    replace_host(swarm, 1, [1])

    newcomer = join(swarm, fresh)  # finds nothing at all, as the first trainer does
    train(old, 0.5)
    before = numbers(old)
    with caplog.at_level(logging.WARNING):
        assert trained.sync()
        assert newcomer.sync()

    assert torch.equal(numbers(old), before)
    assert torch.equal(numbers(fresh), before)
    assert trained.stats().set_back == 3
    assert newcomer.stats().replaced == 3
    assert caplog.text.count("were filled by others since") == 2  # both are told


def test_a_copy_that_is_no_newer_than_what_is_there_yields_to_it_and_is_told(swarm):
    old, fresh = model(), model()
    trained = join(swarm, old)
    train(old, 0.5)
    trained.sync()
    replace_host(swarm, 0, [0, 2])
    replace_host(swarm, 1, [1])
    newcomer = join(swarm, fresh)
    train(fresh, 7.0)
    assert newcomer.sync()  # as many updates as the other one had
    start = numbers(fresh)

    train(old, 0.25)
    trained.sync()

    assert trained.stats().replaced == 3
    assert_near(old, start + 0.25)  # what was not sent yet stays
    assert trained.sync()
    assert newcomer.sync()
    assert_near(fresh, start + 0.25)


def test_without_hosts_joining_says_which_are_missing(small_swarm):
    swarm = small_swarm(trunk())
    swarm.add_host([0])

    with pytest.raises(NotEnoughExperts, match=r"no host answers for trunk.1, trunk.2"):
        join(swarm, model(), timeout_s=SHORT_S)


def drop_answers(host: Host, number: int) -> list[Reply | Failure]:
    """The next answers to this host's callers get lost on the way."""
    answer = host.server.answer
    lost: list[Reply | Failure] = []

    def lose(ticket, message, frames=()):
        if len(lost) < number:
            lost.append(message)
        else:
            answer(ticket, message, frames)

    host.server.answer = lose  # type: ignore[method-assign]
    return lost


def test_a_change_whose_answer_was_lost_is_applied_once(swarm):
    first, second = model(), model()
    one, two = join(swarm, first, deadline_s=SHORT_S), join(swarm, second)
    start = numbers(first)
    lost = drop_answers(swarm.nodes[1], 1)

    train(first, 0.5)
    assert not one.sync()
    assert len(lost) == 1
    train(first, 0.25)  # goes with the next
    swarm.directory.report_success(swarm.identities[1].public_key)
    assert one.sync()
    assert two.sync()

    assert_near(second, start + 0.75)
    assert_near(first, start + 0.75)
    assert one.stats().in_doubt == 0
    assert swarm.nodes[1].backwards.repeated == 1


def test_a_change_that_its_host_can_no_longer_tell_about_is_not_sent_again(swarm, monkeypatch):
    first, second = model(), model()
    one, two = join(swarm, first, deadline_s=SHORT_S), join(swarm, second)
    start = numbers(first)
    host = swarm.nodes[1]
    drop_answers(host, 1)
    train(first, 0.5)
    assert not one.sync()

    def forgotten(*_):
        raise StaleRequest("it was computed before")

    with monkeypatch.context() as patch:
        patch.setattr(host.backwards, "admit", forgotten)
        swarm.directory.report_success(swarm.identities[1].public_key)
        one.sync()
    assert one.stats().in_doubt == 1
    assert two.sync()
    assert one.sync()

    assert_near(second, start + 0.5)
    assert_near(first, start + 0.5)


def test_a_round_that_is_broken_off_leaves_no_change_applied_twice(swarm, monkeypatch):
    first, second = model(), model()
    one, two = join(swarm, first), join(swarm, second)
    start = numbers(first)
    train(first, 0.5)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FanOut, "next_result", interrupted)  # all three chunks were sent
        with pytest.raises(KeyboardInterrupt):
            one.sync()

    assert one.sync()
    assert two.sync()
    assert_near(second, start + 0.5)
    assert_near(first, start + 0.5)


def test_a_change_that_the_codec_cannot_hold_is_told_and_harms_no_other_chunk(swarm):
    first, second = model(), model()
    one, two = join(swarm, first, compression="float16"), join(swarm, second)
    start = numbers(first)
    train(first, 0.5)
    with torch.no_grad():
        first.bias[0] += 1e6  # in the last chunk

    assert not one.sync()
    assert two.sync()

    assert isinstance(one.stats().causes[2], NonFiniteTensor)
    assert_near(second, torch.cat([start[:80] + 0.5, start[80:]]))


def test_beside_the_training_no_step_waits_and_what_is_trained_meanwhile_stays(swarm):
    first, second = model(), model()
    one, two = join(swarm, first, background=True), join(swarm, second)
    start = numbers(first)
    train(second, 0.25)
    two.step()
    held: queue.SimpleQueue[tuple] = queue.SimpleQueue()
    host = swarm.nodes[1]
    answer = host.server.answer
    host.server.answer = lambda *what: held.put(what)

    train(first, 0.5)
    assert not one.step()  # begins an exchange
    train(first, 1.0)
    assert not one.step()
    assert one.stats().skipped == 1

    late = held.get(timeout=DEADLINE_S)
    host.server.answer = answer
    answer(*late)
    one.close()
    assert one.step()  # takes what it brought, and begins the next
    assert_near(first, start + 0.25 + 0.5 + 1.0)
    assert one.sync()
    assert two.sync()
    assert torch.equal(numbers(first), numbers(second))


@pytest.mark.parametrize("compression", ["float16", "bfloat16", "int8"])
def test_what_compression_loses_goes_with_the_next_change(swarm, compression):
    first, second = model(), model()
    one, two = join(swarm, first, compression=(compression, "none")), join(swarm, second)
    start = numbers(first)

    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    trained = numbers(first)
    for _ in range(6):
        assert one.sync()
    assert two.sync()

    moved = (trained - start).abs().max()
    assert (numbers(second) - trained).abs().max() < 1e-3 * moved
    assert (numbers(first) - numbers(second)).abs().max() < 1e-3 * moved


def test_models_of_another_dtype_send_no_rounding(swarm):
    first, second = model(), model().to(torch.bfloat16)
    one, two = join(swarm, first), join(swarm, second)
    start = numbers(first)

    for _ in range(3):
        assert two.sync()
        assert one.sync()

    assert two.stats().changes == 0
    assert torch.equal(numbers(first), start)


def test_what_ended_the_last_exchange_beside_the_training_is_not_lost(swarm, monkeypatch, caplog):
    def refused(*_: object) -> None:
        raise SpecMismatch("the swarm holds another model")

    one = join(swarm, model(), background=True)
    monkeypatch.setattr(one._round, "run", refused)
    one.step()

    one.close()

    assert "layer trunk: the last exchange has failed: the swarm holds another model" in caplog.text
    with pytest.raises(SpecMismatch, match="another model"):
        one.step()


def test_a_reset_of_another_dtype_sends_no_rounding(swarm):
    first, second = model(), model().to(torch.bfloat16)
    one, two = join(swarm, first), join(swarm, second, background=True)
    train(first, 0.123456)
    assert one.sync()

    two.step()
    two.close()  # the state has come, and no step has taken it
    two.reset()

    assert two.stats().taken > 0
    assert two.stats().changes == 0


def test_the_average_of_two_trainers_is_dilocos_outer_step(small_swarm):
    """Nesterov momentum over the mean of what both changed (Douillard et al. 2023, algorithm 1)."""
    half = OptimizerSpec(name="sgd", learning_rate=0.7 / 2, momentum=0.9, nesterov=True, update_rows=2)
    swarm = small_swarm(trunk(half))
    swarm.add_host([0, 1, 2])
    first, second = model(), model()
    one, two = join(swarm, first), join(swarm, second)
    outer = nn.Parameter(numbers(first))
    optimizer = torch.optim.SGD([outer], 0.7, momentum=0.9, nesterov=True)

    for _ in range(3):
        train(first, 0.25)
        train(second, 0.75)
        one.sync()  # waits for the other's at the host, and goes on with its own
        assert_near(first, outer.detach() + 0.25)
        two.sync()
        one.sync()
        outer.grad = torch.full_like(outer, -0.5)
        optimizer.step()

        assert_near(first, outer.detach())
        assert_near(second, outer.detach())


def test_a_trainers_probe_of_a_host_is_answered(swarm):
    prober = Prober(swarm.swarm.calls, swarm.swarm.asynchronous)

    swarm.swarm.asynchronous.submit(prober._probe(swarm.identities[1].public_key)).result(DEADLINE_S)

    stats = swarm.swarm.stats()
    assert (stats.calls, stats.failures) == (1, 0)


def test_layers_of_the_other_kind_are_refused(small_swarm):
    shared, experts = small_swarm(trunk()), small_swarm(layer())

    with pytest.raises(ConfigError, match=r"use swarm.shared\('trunk', model\)"):
        DMoE(shared.swarm, layer="trunk")
    with pytest.raises(ConfigError, match=r"use swarm\.shared"):
        shared.swarm.expert("trunk.0")
    with pytest.raises(ConfigError, match="shared parameters need a layer of architecture 'parameters'"):
        experts.swarm.shared("ffn0", model())


@pytest.mark.parametrize("options", [{"every": 0}, {"deadline_s": 0.0}])
def test_options_that_cannot_work_are_refused(swarm, options):
    with pytest.raises(ConfigError, match="both must be positive"):
        swarm.swarm.shared("trunk", model(), **options)


def lies_as(
    said: Note | SpecMismatch, value: float = 0.0
) -> Callable[[Work, list[torch.Tensor]], torch.Tensor | LearningAtHomeError]:
    """A host of one chunk that gives every read and every write the same answer."""

    def answer(work: Work, tensors: list[torch.Tensor]) -> torch.Tensor | LearningAtHomeError:
        if isinstance(said, SpecMismatch):
            return said
        row = torch.tensor([said.to_row()], dtype=torch.float64)
        if work.operation == "backward":
            return row
        held = torch.full((1, HEADER_SIZE + 40), value, dtype=torch.float64)
        held[:, :HEADER_SIZE] = 0.0
        held[:, :NOTE_SIZE] = row
        return held

    return answer


def liar(swarm: SmallSwarm, said: Note | SpecMismatch, value: float = 0.0) -> None:
    """The host of chunk 1 is lost, and a liar has its cell."""
    swarm.nodes[1].stop()
    withdraw(swarm, 1)
    swarm.add_wilful([1], lies_as(said, value))


def test_the_word_of_one_host_that_another_model_is_here_ends_nobodys_training(swarm):
    first = model()
    shared = join(swarm, first)
    start = numbers(first)
    liar(swarm, SpecMismatch("other names or shapes"))

    train(first, 0.5)
    assert not shared.sync()

    assert isinstance(shared.stats().causes[1], SpecMismatch)
    assert shared.stats().versions == (2, 1, 2)
    assert_near(first, start + 0.5)


@pytest.mark.parametrize(
    "version,fingerprint,value,words",
    [
        (MAX_VERSION, None, 0.0, "more updates than there can be"),
        (5, 99, 0.0, "other parameters"),
        (5, None, 1e300, "dtype cannot hold"),
    ],
)
def test_a_state_that_cannot_be_is_not_taken(small_swarm, version, fingerprint, value, words):
    swarm = small_swarm(trunk())
    swarm.add_host([0, 2])
    swarm.add_host([1])
    first = nn.Linear(9, 10, dtype=torch.float32)
    shared = join(swarm, first)
    start = numbers(first)
    copy = shared._copies[1]
    liar(swarm, Note(Meaning.HELD, version, copy.origin, fingerprint or shared._layout.fingerprint), value)

    assert not shared.sync()

    assert words in str(shared.stats().causes[1])
    assert torch.equal(numbers(first), start)


def test_a_host_that_was_filled_by_a_stranger_gets_the_copy_that_was_trained(swarm):
    first = model()
    shared = join(swarm, first)
    train(first, 0.5)
    shared.sync()
    host = replace_host(swarm, 1, [1])
    stranger = torch.tensor([Note(Meaning.FILL, 1, 7, 99).to_row()], dtype=torch.float64)
    host.experts.by_uid["trunk.1"].gradients(stranger, torch.full((1, HEADER_SIZE + 40), 666.0, dtype=torch.float64))
    trained = numbers(first)

    train(first, 0.25)
    shared.sync()

    late = model()
    join(swarm, late)
    assert_near(late, trained + 0.25)
    assert shared.stats().fills == 4
