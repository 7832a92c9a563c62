"""The test kit, shipped because people who build on Learning@home need it too."""

from learning_at_home.testing.manual_clock import ManualClock

__all__ = ["ManualClock"]
