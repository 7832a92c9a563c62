"""Texts as bytes, to learn from and to test on: the standard library's own sources, or WikiText from a folder."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NUM_BYTES = 256
TEST_SHARE = 0.1  # the last modules: no module gives rows to both sides
WIKITEXT = {"train": "wiki.train", "unseen": "wiki.valid"}
SUFFIXES = (".tokens", ".raw")  # WikiText-2 comes with rare words as <unk>, or as they were


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes as int64 [N]. Nothing of `unseen` is in `train`."""

    train: Tensor
    unseen: Tensor


def standard_library(max_bytes: int | None = None) -> Text:
    """The top modules of Python's own library, by name: nine tenths to learn from."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = _as_bytes(b"\n".join(path.read_bytes() for path in modules)[:max_bytes])
    split = int(len(whole) * (1 - TEST_SHARE))
    return Text(whole[:split], whole[split:])


def wikitext(folder: Path) -> Text:
    """wiki.train.tokens and wiki.valid.tokens (or .raw) of a folder. Raises FileNotFoundError that names them."""
    parts = {}
    for part, name in WIKITEXT.items():
        files = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{folder} has neither {' nor '.join(file.name for file in files)}")
        parts[part] = _as_bytes(found.read_bytes())
    return Text(**parts)


def _as_bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
