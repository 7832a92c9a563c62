"""A chunk of shared parameters: read by forwards, written by backwards, filled only by copies that are newer."""

import pytest
import torch

from learning_at_home.errors import ExpertFailed, ParametersMissing, SpecMismatch
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.shared_parameters import HEADER_SIZE, MAX_FILL, NOTE_SIZE, Meaning, Note
from learning_at_home.wire.messages import TensorSpec, Work
from node_agent.experts.hosted import HostedExperts
from node_agent.experts.shared_chunk import SharedChunk
from node_agent.runtime.admission import check_specs
from node_agent.runtime.computation import compute
from node_agent.runtime.outcomes import Outcome

UID = ExpertUid("trunk", (1,))
MODEL, ANOTHER = 1234, 99
ORIGIN = 7
PLAIN = OptimizerSpec(name="sgd", learning_rate=1.0)
MOMENTUM = OptimizerSpec(name="sgd", learning_rate=0.5, momentum=0.9)
COPY = torch.tensor([[1.0, -2.0, 3.0]])
CHANGE = torch.tensor([[0.5, 0.25, -1.0]])
Write = tuple[torch.Tensor, torch.Tensor]


def chunk(optimizer: OptimizerSpec = PLAIN) -> SharedChunk:
    layer = LayerSpec(prefix="trunk", grid=(2,), architecture="parameters", hidden_size=3, optimizer=optimizer)
    project = ProjectRecord(id="digits", layers=(layer,)).check()
    made = HostedExperts.create([UID], project, torch.device("cpu"), "on").by_uid[str(UID)]
    assert isinstance(made, SharedChunk)
    return made


def note(meaning: Meaning, version: int = 1, fingerprint: int = MODEL, origin: int = ORIGIN) -> torch.Tensor:
    return torch.tensor([Note(meaning, version, origin, fingerprint).to_row()], dtype=torch.float32)


def behind_header(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values, (HEADER_SIZE, 0))


def fill(version: int = 1, values: torch.Tensor = COPY, fingerprint: int = MODEL, origin: int = ORIGIN) -> Write:
    return note(Meaning.FILL, version, fingerprint, origin), behind_header(values)


def change(values: torch.Tensor = CHANGE, fingerprint: int = MODEL, origin: int = ORIGIN) -> Write:
    return note(Meaning.CHANGE, 1, fingerprint, origin), behind_header(values)


def write(host: SharedChunk, *requests: Write) -> list[Note]:
    """What is answered to each. Raises AssertionError with what was refused."""
    outcomes = compute(host, "backward", requests)
    assert all(isinstance(outcome, torch.Tensor) for outcome in outcomes), outcomes
    return [answered(outcome) for outcome in outcomes]


def answered(outcome: Outcome) -> Note:
    assert isinstance(outcome, torch.Tensor), outcome
    found = Note.from_row(outcome[0, :NOTE_SIZE].tolist())
    assert found is not None
    return found


def read(host: SharedChunk) -> torch.Tensor:
    (outcome,) = compute(host, "forward", [(note(Meaning.READ),)])
    assert answered(outcome).version == host.updates
    assert isinstance(outcome, torch.Tensor)
    return outcome[:, HEADER_SIZE:]


def test_a_new_chunk_is_empty_and_takes_the_first_copy():
    host = chunk()
    assert host.updates == 0

    answers = write(host, fill(), fill(values=COPY + 1))

    assert [answer.version for answer in answers] == [1, 1]
    assert torch.equal(read(host), COPY)
    assert host.updates == 1


@pytest.mark.parametrize("version,taken", [(1, False), (3, False), (4, True), (1000, True)])
def test_only_a_newer_copy_replaces_what_is_there(version, taken):
    host = chunk()
    write(host, fill(3))

    write(host, fill(version, COPY + 1))

    assert torch.equal(read(host), COPY + taken)
    assert host.updates == max(3, version)


def test_the_answer_to_a_fill_tells_whose_copy_is_there():
    host = chunk()
    write(host, fill(3, origin=5))

    refused, taken = write(host, fill(3, origin=6), fill(4, origin=7))

    assert (refused.version, refused.origin) == (3, 5)
    assert (taken.version, taken.origin) == (4, 7)


def test_a_change_of_another_fills_content_is_refused():
    host = chunk()
    write(host, fill(origin=5))

    (refused,) = compute(host, "backward", [change(origin=6)])

    assert isinstance(refused, ParametersMissing)
    assert torch.equal(read(host), COPY)


def test_a_change_is_one_step_of_the_optimizer_and_never_clipped():
    host, large = chunk(), 1000 * CHANGE
    write(host, fill())

    (answer,) = write(host, change(large))

    assert torch.equal(read(host), COPY - large)
    assert (answer.version, host.updates) == (2, 2)


def test_changes_of_one_batch_are_added_up_and_make_one_update():
    host = chunk()
    write(host, fill())

    answers = write(host, change(), change(3 * CHANGE))

    assert torch.equal(read(host), COPY - 4 * CHANGE)
    assert [answer.version for answer in answers] == [2, 2]


def test_the_optimizer_is_the_layers():
    host = chunk(MOMENTUM)
    write(host, fill())
    local = torch.nn.Parameter(COPY.clone())
    optimizer = torch.optim.SGD([local], 0.5, momentum=0.9)

    for _ in range(3):
        write(host, change())
        local.grad = CHANGE.clone()
        optimizer.step()

    torch.testing.assert_close(read(host), local.data)


def test_a_fill_forgets_the_momentum_of_what_it_replaces():
    host = chunk(MOMENTUM)
    write(host, fill())
    write(host, change())
    write(host, fill(9))

    write(host, change(torch.zeros(1, 3)))

    assert torch.equal(read(host), COPY)


def test_changes_that_wait_for_others_are_told_in_which_version_they_will_be():
    host = chunk(OptimizerSpec(name="sgd", learning_rate=0.5, update_rows=2))
    write(host, fill())

    (first,) = write(host, change())
    assert torch.equal(read(host), COPY)
    (second,) = write(host, change())

    assert (first.version, second.version, host.updates) == (2, 2, 2)
    assert torch.equal(read(host), COPY - CHANGE)


def test_a_fill_drops_the_changes_that_wait():
    host = chunk(OptimizerSpec(name="sgd", learning_rate=1.0, update_rows=2))
    write(host, fill())
    write(host, change())

    write(host, fill(5))
    write(host, change())

    assert torch.equal(read(host), COPY)


def test_a_fill_drops_the_changes_that_came_in_one_batch_before_it():
    host = chunk()
    write(host, fill(origin=5))

    before, filled, after = write(host, change(100 * CHANGE, origin=5), fill(9, COPY + 1, origin=6), change(origin=6))

    assert torch.equal(read(host), COPY + 1 - CHANGE)
    assert [(answer.version, answer.origin) for answer in (before, filled, after)] == [(2, 5), (9, 6), (10, 6)]
    assert host.updates == 10


def test_a_change_for_an_empty_chunk_is_refused_alone():
    host = chunk()

    lost, filled = compute(host, "backward", [change(), fill()])

    assert isinstance(lost, ParametersMissing)
    assert answered(filled).version == 1
    assert torch.equal(read(host), COPY)


@pytest.mark.parametrize("request_of", [fill, change])
def test_another_models_trainer_is_refused_and_changes_nothing(request_of):
    host = chunk()
    write(host, fill())

    (refused, _) = compute(host, "backward", [request_of(fingerprint=ANOTHER), change()])

    assert isinstance(refused, SpecMismatch)
    assert "other names or shapes" in refused.message
    assert torch.equal(read(host), COPY - CHANGE)
    (outcome,) = compute(host, "forward", [(note(Meaning.READ, 1, ANOTHER),)])
    assert isinstance(outcome, SpecMismatch)


@pytest.mark.parametrize("row", [torch.zeros(1, 16), note(Meaning.READ), torch.ones(1, 16)])
def test_a_write_that_does_not_say_what_it_means_is_refused(row):
    host = chunk()
    write(host, fill())

    (refused,) = compute(host, "backward", [(row, behind_header(CHANGE))])

    assert isinstance(refused, SpecMismatch)
    assert torch.equal(read(host), COPY)


def test_a_fill_in_the_guise_of_a_gradient_is_refused_before_it_is_computed():
    host = chunk()
    specs = tuple(TensorSpec("float32", tuple(tensor.shape)) for tensor in fill())
    assert check_specs(host, Work(1, str(UID), "backward", specs), 4_096) == 1

    with pytest.raises(SpecMismatch, match="no gradient to ask for"):
        check_specs(host, Work(1, str(UID), "gradient", specs), 4_096)

    assert host.updates == 0


def test_a_probe_reads_an_empty_chunk():
    (outcome,) = compute(chunk(), "forward", [(torch.zeros(1, 16),)])

    assert answered(outcome) == Note(Meaning.HELD, 0, 0, 0)


def test_a_change_too_large_for_the_optimizer_is_refused():
    host = chunk()
    write(host, fill())

    (refused,) = compute(host, "backward", [change(torch.full((1, 3), 3e38))])

    assert isinstance(refused, ExpertFailed)
    assert torch.equal(read(host), COPY)


def test_an_answer_does_not_change_with_the_chunk():
    host = chunk()
    write(host, fill())
    before = read(host)

    write(host, change())

    assert torch.equal(before, COPY)


@pytest.mark.parametrize("wrong", [{"version": MAX_FILL + 1}, {"origin": 0}, {"fingerprint": 0}])
def test_a_fill_that_leaves_no_room_for_updates_or_names_nothing_is_refused(wrong):
    host = chunk()
    (outcome,) = compute(host, "backward", [fill(**wrong)])

    assert isinstance(outcome, SpecMismatch)
    assert host.updates == 0


def test_after_the_highest_fill_changes_still_count_and_are_told():
    host = chunk()
    write(host, fill(MAX_FILL))

    assert write(host, change())[0].version == MAX_FILL + 1
    assert torch.equal(read(host), COPY - CHANGE)


def test_a_stranger_who_came_first_gives_way_to_a_copy_that_was_trained_longer():
    host = chunk()
    write(host, fill(2, fingerprint=ANOTHER))
    (refused,) = compute(host, "backward", [fill(2, origin=8)])
    assert isinstance(refused, SpecMismatch)

    write(host, fill(3, origin=8))

    assert torch.equal(read(host), COPY)
    assert isinstance(compute(host, "backward", [fill(1, fingerprint=ANOTHER)])[0], SpecMismatch)
