"""How a process of ours ends: soon after its work is done."""

from __future__ import annotations

import atexit
import gc


def end_quickly() -> None:
    """Let the interpreter's end not look for garbage in what is loaded; the system takes the memory back anyway.

    With torch that search takes a second of computing for each process, measured, and several when the six of a demo
    end together on two cores; without it 0.2 s. Handlers, logs and finalizers still run.
    """
    atexit.register(gc.freeze)
