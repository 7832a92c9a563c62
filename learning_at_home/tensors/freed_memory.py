"""Keep freed memory for the next tensor instead of giving it back to the system at once.

glibc returns freed blocks of a few MiB to the system, and the next tensor of that size takes a page fault for each
4 KiB of it. On a virtual machine that is up to 2 µs each: to fill 8 MiB takes 5 ms instead of 0.8. The setting is the
whole process's, with ZeroMQ's buffers.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 128 * 1024 * 1024  # at the top of the heap; two requests of the largest size
OWN_MAPPING_BYTES = 32 * 1024 * 1024  # glibc takes no more: larger blocks are mapped and unmapped one by one
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Whether it is kept from now on: not where another allocator works, nor where the environment says how to."""
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library None
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
