"""What a benchmark ran on, for its JSON file."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import psutil


def machine() -> dict[str, object]:
    """Processor, cores, versions and device."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count() or 1,
        "python": platform.python_version(),
        "torch": version("torch"),
        "device": _device(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
