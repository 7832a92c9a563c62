"""The end of a process: what is loaded is not searched for garbage, all else runs as ever."""

from __future__ import annotations

import subprocess
import sys


def test_exit_handlers_run_and_garbage_is_not_looked_for() -> None:
    program = """
import atexit, gc, sys
from learning_at_home.process_exit import end_quickly
atexit.register(lambda: print(gc.get_freeze_count() > 1_000, "last words"))  # runs last: handlers run in reverse
end_quickly()
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "True last words\n", "")
