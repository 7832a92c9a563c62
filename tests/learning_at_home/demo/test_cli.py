"""The command line of `lah demo`, and the exit codes of what it starts, with small programs in the parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from learning_at_home.demo import cli

DEADLINE_S = 30.0

# `lah demo` with other programs in the parts; argv[1] is the trainer's code.
DEMO = """
import signal
import sys
from pathlib import Path
from learning_at_home.demo import cli, commands

COORDINATOR = '''
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/v1/projects/digits" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''

class Understudies(commands.Commands):
    __slots__ = ()
    def coordinator(self, port, folder, project_file):
        return (sys.executable, "-c", COORDINATOR, str(port))
    def node(self, number, port, folder):
        return (sys.executable, "-c", "import sys; sys.stdin.read()")
    def trainer(self, port):
        return (sys.executable, "-c", TRAINER)

TRAINER, *arguments = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that run under nohup inherit that it is ignored
cli.Commands = Understudies
sys.exit(cli.main(arguments))
"""
FINISHED = (
    """print('{"type":"finished","accuracy":%s,"steps":4,"rows_per_second":1.0,"calls":6,"failures":0,"""
    """"goal_reached_at_step":null,"seconds":2.0}')"""
)
WAITING = "import sys; sys.stdin.read()"


class Demo:
    """A running demo; its temporary files are under a folder with a space in its name."""

    def __init__(self, folder: Path, trainer: str, *arguments: str) -> None:
        self.folder = folder / "temporary files"
        self.folder.mkdir()
        self._err = (folder / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-c", DEMO, trainer, "--port", "0", "--nodes", "2", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._err,
            env={**os.environ, "TMPDIR": str(self.folder)},
            text=True,
        )

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of standard output, standard error."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        self._err.seek(0)
        err = self._err.read().decode()
        self._err.close()
        return self.process.returncode, out, err

    def all_children(self) -> list[psutil.Process]:
        """The coordinator, the nodes and the trainer, once they are all there."""
        while len(children := psutil.Process(self.process.pid).children()) < 4:
            assert self.process.poll() is None
        return children


@pytest.mark.parametrize("accuracy, code", [("0.9", 0), ("0.85", 0), ("0.8499", 1)])
def test_the_exit_code_says_whether_the_accuracy_was_reached(tmp_path, accuracy, code):
    demo = Demo(tmp_path, FINISHED % accuracy, "--headless", "--exit")

    returned, out, _ = demo.end()

    assert returned == code
    assert out.splitlines()[0].startswith("dashboard: http://127.0.0.1:")
    assert f'"accuracy": {accuracy}' in out.splitlines()[-1]
    assert list(demo.folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_every_process_and_removes_the_files(tmp_path, number):
    demo = Demo(tmp_path, WAITING)
    assert demo.first_line().startswith("dashboard: ")
    children = demo.all_children()

    demo.process.send_signal(number)
    code, _, err = demo.end()

    assert code == 128 + number
    assert not any(child.is_running() for child in children)
    assert list(demo.folder.iterdir()) == []
    assert "Traceback" not in err


def test_ctrl_c_after_the_training_is_a_good_end(tmp_path):
    demo = Demo(tmp_path, FINISHED % "0.9", "--headless")
    assert demo.first_line().startswith("dashboard: ")
    assert demo.first_line().startswith('{"accuracy": 0.9')

    demo.process.send_signal(signal.SIGINT)
    code, out, _ = demo.end()

    assert (code, out) == (0, "")


def test_after_a_failure_the_logs_stay_and_their_place_is_told(tmp_path):
    demo = Demo(tmp_path, "import sys; sys.exit('out of ideas')", "--headless", "--exit")

    code, _, err = demo.end()

    [kept] = demo.folder.iterdir()
    assert code == 1
    assert "| out of ideas" in err
    assert f"kept in {kept / 'logs'}" in err
    assert (kept / "logs" / "trainer.log").read_text() == "out of ideas\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--nodes", "0"], "0 is not between 1 and 16"),
        (["--nodes", "many"], "'many' is not a whole number"),
        (["--port", "70000"], "70000 is not between 0 and 65535"),
        (["--steps", "0"], "0 is not between 1 and"),
        (["--colour"], "unrecognized arguments"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_in_words(capsys, arguments, words):
    with pytest.raises(SystemExit) as refusal:
        cli.main(arguments)

    assert refusal.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_package_is_told_with_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(cli, "NEEDED_MODULES", ("sys", "no_such_package"))

    assert cli.main([]) == 3
    assert "needs no_such_package" in capsys.readouterr().err
