"""Whether freed memory is kept: in a process of its own, since the setting is the whole process's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from learning_at_home.tensors.freed_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def pass_by(rounds):
    for _ in range(rounds):
        several = [bytearray(8 << 20) for _ in range(3)]

pass_by(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pass_by(10)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def outcome(do: str, **environment: str) -> tuple[str, int]:
    """What the call returned, and the page faults of ten times three blocks of 8 MiB afterwards."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, do],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    returned, faults = ran.stdout.split()
    return returned, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_what_was_freed_is_used_again_without_a_page_fault() -> None:
    _, faults_of_old = outcome("leave")
    kept, faults = outcome("keep")
    assert kept == "True"
    assert faults < 100 < faults_of_old


def test_what_the_environment_says_of_memory_stands() -> None:
    assert outcome("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
