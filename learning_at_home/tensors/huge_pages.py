"""Let torch put large tensors of the CPU on huge pages.

A page fault takes up to 2 µs on a virtual machine, and what a step of an expert needs is mapped anew each time where a
tensor is larger than glibc keeps (32 MiB): with 2,048 rows and 4,096 units that was a tenth of the step.
"""

from __future__ import annotations

import os

_SWITCH = "THP_MEM_ALLOC_ENABLE"  # of torch, for tensors of 2 MiB and more, on Linux; elsewhere it does nothing


def use_huge_pages() -> None:
    """From now on, where the system allows it and the environment does not say otherwise.

    Before the process makes its first tensor: torch looks once.
    """
    os.environ.setdefault(_SWITCH, "1")
