"""The demo's task: scikit-learn's 8x8 digits drawn somewhere on a 16x16 canvas, turned, scaled, shifted and noisy.

It must need the experts: a linear model ends near 0.40 of the test rows, frozen experts near 0.70, trained near 0.89.
Training and test rows are drawn from different images. Knows nothing of the swarm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

# Shapes: N images, R rows, P = 256 pixels of the canvas.

CANVAS_PIXELS = 16  # per side; an image of 8x8 keeps its size and leaves half of the canvas to move in
IMAGE_PIXELS = 8
NUM_FEATURES = CANVAS_PIXELS**2
NUM_CLASSES = 10
MAX_TURN_RADIANS = math.radians(15)
MAX_SCALE_CHANGE = 0.15
MAX_SHIFT = (
    0.22  # of the canvas's half side, as affine_grid measures: 1.8 pixels. Larger, and experts need far more steps
)
NOISE = 0.1  # standard deviation, where ink is 1 and paper 0
NUM_TRAINING_IMAGES = 1_300  # of 1,797; no image gives rows to both sides


@dataclass(frozen=True, slots=True)
class DigitsTask:
    """Rows float32 [R, P] and labels int64 [R]; the image numbers that each side was drawn from, int64 [N]."""

    train_rows: Tensor
    train_labels: Tensor
    test_rows: Tensor
    test_labels: Tensor
    train_images: Tensor
    test_images: Tensor


def make_digits_task(seed: int = 0, num_train_rows: int = 30_000, num_test_rows: int = 5_000) -> DigitsTask:
    """The same rows for the same arguments, in about a second; the global random state is left alone."""
    random = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32) / 16  # scikit-learn counts ink from 0 to 16
    labels = torch.from_numpy(digits.target).to(torch.int64)
    order = torch.randperm(len(images), generator=random)
    train_images, test_images = order[:NUM_TRAINING_IMAGES], order[NUM_TRAINING_IMAGES:]
    train_picks = _pick(train_images, num_train_rows, random)
    test_picks = _pick(test_images, num_test_rows, random)
    return DigitsTask(
        train_rows=_draw(images[train_picks], random),
        train_labels=labels[train_picks],
        test_rows=_draw(images[test_picks], random),
        test_labels=labels[test_picks],
        train_images=train_images,
        test_images=test_images,
    )


def _pick(images: Tensor, num_rows: int, random: torch.Generator) -> Tensor:
    """Image numbers [R], every image as often as the others (give or take one), in random order."""
    repeated = images[torch.arange(num_rows) % len(images)]
    return repeated[torch.randperm(num_rows, generator=random)]


def _draw(images: Tensor, random: torch.Generator) -> Tensor:
    """Images [R, 8, 8] drawn on canvases [R, P], each turned, scaled and shifted by amounts of its own."""
    num_rows = len(images)

    def uniform(most: float) -> Tensor:
        return (torch.rand(num_rows, generator=random) * 2 - 1) * most

    turn, scale = uniform(MAX_TURN_RADIANS), 1 + uniform(MAX_SCALE_CHANGE)
    shift_x, shift_y = uniform(MAX_SHIFT), uniform(MAX_SHIFT)
    # grid_sample asks, for each point of the canvas, which point of the image lies there: the inverse of the drawing.
    zoom = CANVAS_PIXELS / IMAGE_PIXELS / scale
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    to_image_x = torch.stack([cos, -sin, -(cos * shift_x - sin * shift_y)], dim=1)
    to_image_y = torch.stack([sin, cos, -(sin * shift_x + cos * shift_y)], dim=1)
    inverse = torch.stack([to_image_x, to_image_y], dim=1)  # [R, 2, 3]
    points = affine_grid(inverse, [num_rows, 1, CANVAS_PIXELS, CANVAS_PIXELS], align_corners=False)
    canvases = grid_sample(images[:, None], points, align_corners=False).reshape(num_rows, NUM_FEATURES)
    return canvases + NOISE * torch.randn(num_rows, NUM_FEATURES, generator=random)
