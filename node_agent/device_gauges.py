"""Load, memory, temperature and power of the device, where they can be read. Not for the event loop.

NVML for a GPU; for the CPU the load of the machine and the memory of this process. Knows nothing of experts.
"""

from __future__ import annotations

import contextlib
import logging
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

log = logging.getLogger(__name__)

# What NVML tells of a device; `nvml` is its module.
_GAUGES: dict[str, Callable[[Any, Any], float]] = {
    "load_percent": lambda nvml, handle: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    "temperature_c": lambda nvml, handle: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    "power_w": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
}


class DeviceGauges:
    """Reads one device. `close` when done. `nvml`: the module of that interface, None where it is not installed."""

    def __init__(self, device: torch.device, nvml: Any = pynvml) -> None:
        self._device = device
        self._process = psutil.Process()
        self._nvml = nvml
        self._handle: Any = None  # what NVML calls a device
        if device.type == "cuda" and nvml is not None:
            self._handle = _nvml_handle(nvml, device)
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
            self._handle = None
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _read_cuda(self) -> DeviceTelemetry:
        free, total = torch.cuda.mem_get_info(self._device)
        if self._handle is None:
            return DeviceTelemetry(memory_used_bytes=total - free, memory_total_bytes=total)
        readings: dict[str, float | None] = {}
        for name, read in _GAUGES.items():
            try:
                readings[name] = read(self._nvml, self._handle)
            except self._nvml.NVMLError:  # not every card tells everything, nor everybody
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


def _nvml_handle(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of a torch device, found by its UUID: NVML does not follow CUDA_VISIBLE_DEVICES."""
    try:
        nvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is not None:
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
    except nvml.NVMLError as error:  # no driver, or no permission
        log.info("%s: no load, temperature or power: %s", device, error)
        return None
