"""What is read of a device, and what is not when its driver, or the right to ask it, is missing."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from learning_at_home.coordinator_messages import DeviceTelemetry
from node_agent.device_gauges import DeviceGauges

GPU = torch.device("cuda:0")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """torch as it is on a machine with one GPU."""
    properties = SimpleNamespace(name="NVIDIA GeForce RTX 4070", total_memory=12 * GIB, uuid="4070-a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * GIB, 12 * GIB))


class FakeNvml:
    """NVML's module. `broken`: the functions that raise what it raises."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.asked_for: list[str] = []
        self.is_open = False

    def nvmlInit(self) -> None:
        self._may("nvmlInit")
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self._may("nvmlShutdown")
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._may("nvmlDeviceGetHandleByUUID")
        self.asked_for.append(uuid)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._may("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        self._may("nvmlDeviceGetTemperature")
        return 64

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        self._may("nvmlDeviceGetPowerUsage")
        return 181_500

    def _may(self, function: str) -> None:
        if function in self.broken:
            raise self.NVMLError("Insufficient Permissions")


def test_a_gpu_tells_its_load_memory_temperature_and_power():
    nvml = FakeNvml()
    gauges = DeviceGauges(GPU, nvml)

    reading = gauges.read()
    gauges.close()

    assert reading == DeviceTelemetry(87.0, 3 * GIB, 12 * GIB, 64.0, 181.5)
    assert nvml.asked_for == ["GPU-4070-a"]
    assert not nvml.is_open


def test_what_a_card_does_not_tell_is_left_out():
    gauges = DeviceGauges(GPU, FakeNvml("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"))

    assert gauges.read() == DeviceTelemetry(None, 3 * GIB, 12 * GIB, 64.0, None)


@pytest.mark.parametrize(
    "nvml",
    [None, FakeNvml("nvmlInit"), FakeNvml("nvmlDeviceGetHandleByUUID")],
    ids=["not installed", "no driver", "no permission"],
)
def test_without_nvml_a_gpu_still_tells_its_memory(nvml):
    gauges = DeviceGauges(GPU, nvml)

    assert gauges.read() == DeviceTelemetry(None, 3 * GIB, 12 * GIB, None, None)
    gauges.close()


def test_a_driver_that_fails_at_the_end_holds_up_nothing():
    gauges = DeviceGauges(GPU, FakeNvml("nvmlShutdown"))

    gauges.close()
    gauges.close()


def test_a_gpu_is_named():
    hardware = DeviceGauges(GPU, None).hardware()

    assert (hardware.device, hardware.device_name) == ("cuda:0", "NVIDIA GeForce RTX 4070")
    assert hardware.memory_bytes == 12 * GIB


def test_a_cpu_tells_the_machines_load_and_this_process_memory():
    gauges = DeviceGauges(torch.device("cpu"), FakeNvml("nvmlInit"))

    reading, hardware = gauges.read(), gauges.hardware()

    assert reading.load_percent is not None
    assert 0 <= reading.load_percent <= 100
    assert reading.memory_used_bytes is not None
    assert 0 < reading.memory_used_bytes < psutil.virtual_memory().total == reading.memory_total_bytes
    assert (reading.temperature_c, reading.power_w) == (None, None)
    assert (hardware.device, hardware.cpus) == ("cpu", psutil.cpu_count())
    assert hardware.device_name
