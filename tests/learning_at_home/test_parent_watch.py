"""A process that watches its standard input, as a real process: what it does when its parent is gone."""

from __future__ import annotations

import signal
import subprocess
import sys

from learning_at_home.parent_watch import EXIT_ORPHANED

DEADLINE_S = 20.0


IMPORTS = """
import signal, sys, threading
import learning_at_home.parent_watch as watch
from learning_at_home.parent_watch import exit_when_stdin_closes
"""


def start(body: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", IMPORTS + body], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def read_line(process: subprocess.Popen) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def write_line(process: subprocess.Popen, line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def close_stdin(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_it_stops_as_at_sigterm_when_its_standard_input_closes():
    with start("exit_when_stdin_closes(); print('ready', flush=True); signal.pause()") as process:
        assert read_line(process) == b"ready\n"

        close_stdin(process)

        assert process.wait(DEADLINE_S) == -signal.SIGTERM


def test_it_runs_on_as_long_as_the_parent_holds_the_pipe_and_ignores_what_it_says():
    body = "exit_when_stdin_closes()\nprint('ready', flush=True)\nsignal.sigwait([signal.SIGUSR1])\nsys.exit(5)"
    with start("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + body) as process:
        assert read_line(process) == b"ready\n"

        write_line(process, b"hello\n")
        process.send_signal(signal.SIGUSR1)

        assert process.wait(DEADLINE_S) == 5


def test_a_stop_of_ones_own_is_called_and_may_end_the_process_in_order():
    body = "done = threading.Event(); exit_when_stdin_closes(done.set); done.wait(); print('in order'); sys.exit(0)"
    with start(body) as process:
        out, _ = process.communicate(timeout=DEADLINE_S)

    assert out == b"in order\n"
    assert process.returncode == 0


def test_a_process_that_does_not_stop_is_left_by_force():
    body = "watch.EXIT_GRACE_S = 0.05; exit_when_stdin_closes(lambda: None); signal.pause()"
    with start(body) as process:
        process.communicate(timeout=DEADLINE_S)

    assert process.returncode == EXIT_ORPHANED
