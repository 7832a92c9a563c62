"""The experiment of several trainers, tiny: real processes train one model, and one that is killed goes on."""

import json

import pytest
import torch

from experiments.several_trainers import main
from experiments.tasks import CONTEXT_BYTES, HIDDEN_SIZE, TASKS

TINY = ["--task", "text", "--every", "5", "--pace-s", "0", "--nodes", "1", "--in-process"]


@pytest.mark.parametrize("name,num_classes", [("digits", 10), ("text", 256)])
@pytest.mark.slow
def test_a_task_has_rows_that_its_model_takes(name, num_classes):
    task, again = TASKS[name](0), TASKS[name](0)

    scores = task.build(torch.nn.Identity())(task.test_rows[:3])

    assert scores.shape == (3, num_classes)
    assert int(task.train_labels.max()) < num_classes
    assert torch.equal(task.train_rows, again.train_rows)
    assert HIDDEN_SIZE == 64
    if name == "text":
        assert task.train_rows.shape[1] == CONTEXT_BYTES


@pytest.mark.slow
def test_two_trainers_share_one_model(tmp_path):
    file, plot = tmp_path / "found.json", tmp_path / "loss.svg"

    assert main([*TINY, "--trainers", "2", "--rows", "3840", "--json", str(file), "--plot", str(plot)]) == 0

    (run,) = json.loads(file.read_text())["runs"]
    assert [trainer["changes"] > 0 for trainer in run["shared"]] == [True, True]
    assert [trainer["fills"] for trainer in run["shared"]].count(0) == 1  # one was the first, the other took its start
    assert run["points"][-1]["loss"] < run["points"][0]["loss"]
    for axis in ("rows", "seconds"):
        assert "2 trainers" in (tmp_path / f"loss-{axis}.svg").read_text()


@pytest.mark.slow
def test_a_killed_trainer_goes_on_from_what_the_swarm_holds(tmp_path):
    file = tmp_path / "found.json"

    assert main([*TINY, "--trainers", "--rows", "5120", "--kill", "--json", str(file)]) == 0

    (restart,) = json.loads(file.read_text())["restarts"]
    fresh, at_restart = restart["untrained_loss"], restart["loss_after"]
    assert at_restart < fresh - 0.5 * (fresh - restart["loss_before"])
