"""The demo's task: what it promises to the demo, and that it cannot be solved without the experts."""

from __future__ import annotations

import pytest
import torch

from learning_at_home.demo.digits import NUM_FEATURES, DigitsTask, make_digits_task


@pytest.fixture(scope="module")
def task() -> DigitsTask:
    return make_digits_task(seed=0)


def test_the_task_has_the_promised_sizes(task):
    assert task.train_rows.shape == (30_000, NUM_FEATURES)
    assert task.test_rows.shape == (5_000, NUM_FEATURES)
    assert task.train_rows.dtype == task.test_rows.dtype == torch.float32
    assert task.train_labels.shape == (30_000,)
    assert task.test_labels.shape == (5_000,)
    assert set(task.test_labels.tolist()) == set(task.train_labels.tolist()) == set(range(10))


def test_training_and_test_rows_come_from_different_images(task):
    assert len(task.train_images) == 1_300
    assert sorted([*task.train_images.tolist(), *task.test_images.tolist()]) == list(range(1_797))


def test_the_same_seed_draws_the_same_rows_and_another_draws_others():
    first, again, other = (make_digits_task(seed, num_train_rows=50, num_test_rows=20) for seed in (7, 7, 8))

    assert torch.equal(first.train_rows, again.train_rows)
    assert torch.equal(first.test_rows, again.test_rows)
    assert torch.equal(first.test_labels, again.test_labels)
    assert not torch.equal(first.train_rows, other.train_rows)


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()

    make_digits_task(seed=3, num_train_rows=10, num_test_rows=10)

    assert torch.equal(torch.get_rng_state(), before)


def test_the_ink_moves_over_the_canvas_but_never_leaves_it(task):
    canvases = task.train_rows.reshape(-1, 16, 16)
    border = torch.cat([canvases[:, 0], canvases[:, -1], canvases[:, :, 0], canvases[:, :, -1]], dim=1)
    columns = canvases.clamp(min=0.3).sum(dim=1).argmax(dim=1)

    assert border.abs().max() < 0.6  # six standard deviations of the noise: no ink there
    assert columns.unique().numel() >= 6


@pytest.mark.slow
def test_a_linear_model_ends_far_below_the_experts(task):
    torch.manual_seed(0)
    model = torch.nn.Linear(NUM_FEATURES, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    for _ in range(600):
        rows = torch.randint(0, len(task.train_rows), (128,))
        loss = torch.nn.functional.cross_entropy(model(task.train_rows[rows]), task.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        accuracy = (model(task.test_rows).argmax(dim=1) == task.test_labels).float().mean().item()
    assert 0.30 < accuracy < 0.50
