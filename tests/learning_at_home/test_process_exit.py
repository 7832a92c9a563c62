"""Leaving a process: the code and the output arrive, and nothing runs afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_code_and_the_output_arrive_and_nothing_runs_afterwards(code: int) -> None:
    program = f"""
import atexit, logging, sys
from learning_at_home.process_exit import leave
logging.basicConfig(stream=sys.stderr)
atexit.register(print, "too late")
sys.stdout.write("last words")
logging.warning("last log")
leave({code})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (code, "last words")
    assert "last log" in done.stderr
