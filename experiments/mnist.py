"""MNIST from a folder of the files as they are published, `train-images-idx3-ubyte` and so on, plain or `.gz`.

Nothing is downloaded. The format (IDX): two zero bytes, the type of the numbers (8: unsigned bytes), how many
dimensions, each one's size as a big-endian 32-bit number, then the numbers.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from experiments.asynchronous_trainers import Rows
from learning_at_home.errors import ConfigError

UNSIGNED_BYTES = 8
MEAN, DEVIATION = 0.1307, 0.3081  # of its training images' pixels, from 0 to 1
MAX_BYTES = 1 << 30


def load_mnist(folder: Path) -> Rows:
    """All rows, pixels with mean 0 and deviation 1. Raises ConfigError that names the file."""
    train, train_labels = _part(folder, "train")
    test, test_labels = _part(folder, "t10k")
    return Rows(train, train_labels, test, test_labels)


def _part(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(folder, f"{name}-images-idx3-ubyte"), read_idx(folder, f"{name}-labels-idx1-ubyte")
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or not len(images):
        raise ConfigError(f"{folder}: {list(images.shape)} images and {list(labels.shape)} labels of {name} do not fit")
    return (images.flatten(1).to(torch.float32) / 255 - MEAN) / DEVIATION, labels.to(torch.int64)


def read_idx(folder: Path, name: str) -> Tensor:
    """The numbers of a file, or of the same with `.gz`: uint8, of the file's shape. Raises ConfigError."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has neither {name} nor {name}.gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES)
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise ConfigError(f"{path} is no IDX file of unsigned bytes")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ConfigError(f"{path} ends in its header")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ConfigError(f"{path} announces {shape} numbers and holds {len(content) - header:,}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
