"""The test kit, shipped because people who build on Learning@home need it too."""

from learning_at_home.testing.lost_calls import LostCalls, lost_calls
from learning_at_home.testing.manual_clock import ManualClock
from learning_at_home.testing.simulated_dht import SimulatedDht
from learning_at_home.testing.simulated_network import SimulatedNetwork
from learning_at_home.testing.virtual_time import LoopClock, VirtualTimeLoop, run_in_virtual_time
from learning_at_home.testing.wan import Wan, WanCounters
from learning_at_home.testing.wan_process import WanProcess
from learning_at_home.testing.wan_proxy import WanProxy

__all__ = [
    "LoopClock",
    "LostCalls",
    "ManualClock",
    "SimulatedDht",
    "SimulatedNetwork",
    "VirtualTimeLoop",
    "Wan",
    "WanCounters",
    "WanProcess",
    "WanProxy",
    "lost_calls",
    "run_in_virtual_time",
]
