"""The device that a flag names."""

from __future__ import annotations

import torch

from learning_at_home.errors import ConfigError


def find_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises ConfigError when there is no such device."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if num_gpus else "cpu")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        there = ", ".join(f"cuda:{index}" for index in range(num_gpus)) or "no GPU that this PyTorch can use"
        raise ConfigError(f"--device {name}: this machine has {there}; --device cpu always works")
    return device
