"""Load, memory, temperature and power of the device, where they can be read. Not for the event loop.

NVML for a GPU; for the CPU the load of the machine and the memory of this process. Knows nothing of experts.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from learning_at_home.coordinator_messages import DeviceTelemetry, Hardware

try:
    import pynvml
except ImportError:  # a machine without NVIDIA's library still trains on its CPU
    pynvml = None


_GAUGES: dict[str, Callable[[Any], float]] = {
    "load_percent": lambda handle: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    "temperature_c": lambda handle: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    "power_w": lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
}


class DeviceGauges:
    """Reads one device. `close` when done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._handle: Any = None  # what NVML calls a device
        if device.type == "cuda" and pynvml is not None:
            self._handle = _nvml_handle(device)
        psutil.cpu_percent()  # the first reading is what later ones are compared with

    def hardware(self) -> Hardware:
        """Labels of the machine."""
        cuda = self._device.type == "cuda"
        properties = torch.cuda.get_device_properties(self._device) if cuda else None
        return Hardware(
            device=str(self._device),
            device_name=(properties.name if properties else _processor_name())[:80],
            memory_bytes=properties.total_memory if properties else psutil.virtual_memory().total,
            cpus=psutil.cpu_count() or 0,
            platform=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"[:80],
        )

    def read(self) -> DeviceTelemetry:
        """The gauges now; None where there is no reading."""
        if self._device.type == "cuda":
            return self._read_cuda()
        return DeviceTelemetry(
            load_percent=psutil.cpu_percent(),
            memory_used_bytes=self._process.memory_info().rss,
            memory_total_bytes=psutil.virtual_memory().total,
        )

    def close(self) -> None:
        if self._handle is not None:
            pynvml.nvmlShutdown()
            self._handle = None

    def _read_cuda(self) -> DeviceTelemetry:
        free, total = torch.cuda.mem_get_info(self._device)
        if self._handle is None:
            return DeviceTelemetry(memory_used_bytes=total - free, memory_total_bytes=total)
        readings: dict[str, float | None] = {}
        for name, read in _GAUGES.items():
            try:
                readings[name] = read(self._handle)
            except pynvml.NVMLError:  # not every card tells everything
                readings[name] = None
        return DeviceTelemetry(memory_used_bytes=total - free, memory_total_bytes=total, **readings)


def _processor_name() -> str:
    """As the maker calls it, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _nvml_handle(device: torch.device) -> Any:
    """NVML's handle of a torch device, found by its UUID: NVML does not follow CUDA_VISIBLE_DEVICES."""
    try:
        pynvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is not None:
            return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    except pynvml.NVMLError:
        return None
