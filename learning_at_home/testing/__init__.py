"""The test kit, shipped because people who build on Learning@home need it too."""

from learning_at_home.testing.manual_clock import ManualClock
from learning_at_home.testing.simulated_dht import SimulatedDht
from learning_at_home.testing.simulated_network import SimulatedNetwork
from learning_at_home.testing.virtual_time import LoopClock, VirtualTimeLoop, run_in_virtual_time

__all__ = [
    "LoopClock",
    "ManualClock",
    "SimulatedDht",
    "SimulatedNetwork",
    "VirtualTimeLoop",
    "run_in_virtual_time",
]
