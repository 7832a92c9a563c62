"""A page that shows an experiment while it goes: a coordinator beside it, for `--dashboard [PORT]`. Threaded.

Nodes and trainers join there what else they would join by a bootstrap peer alone; what has no nodes, or simulated ones,
reports its curves and nothing more. The page ends with the experiment; what it found is in its files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import httpx

from learning_at_home.client.swarm import Swarm
from learning_at_home.demo.commands import child_environment
from learning_at_home.demo.ports import HOST, free_port
from learning_at_home.errors import CoordinatorUnreachable
from learning_at_home.project import ProjectRecord
from node_agent.testing.project_files import project_toml

DEFAULT_PORT = 8765  # also that of `lah coordinator`
START_TIMEOUT_S = 60.0
POLL_S = 0.1
STOP_TIMEOUT_S = 10.0
TOLD_EVERY_S = 0.25  # at most: the page is drawn anew no more often
LAST_WORDS = 2_000  # characters
VIRTUAL = "Nodes are simulated in the experiment's own process: only what is reported of the training is shown."


class Curve:
    """What a training tells of itself: `curve(step, loss=loss)`, as often as it likes.

    Each report has all that is known, so that what is measured now and then has a line, too.
    """

    def __init__(self, report: Callable[..., None] | None) -> None:
        """`report`: that of a Swarm. None: nobody is told."""
        self._report = report
        self._step = 0
        self._known: dict[str, float] = {}
        self._untold = False
        self._told_at_s = float("-inf")

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._report is not None and self._untold:
            self._report(self._step, **self._known)

    def __call__(self, step: int, **metrics: float) -> None:
        if self._report is None:
            return
        self._step, self._untold = step, True
        self._known.update(metrics)
        now = time.monotonic()
        if now - self._told_at_s >= TOLD_EVERY_S:
            self._told_at_s, self._untold = now, False
            self._report(step, **self._known)


UNSEEN = Curve(None)


class Dashboard:
    """From `with` to its end. Without a port nothing is started, and nobody is told anything."""

    def __init__(self, port: int | None) -> None:
        """`port`: of the page; another one if it is taken. 0: any."""
        self._wanted_port = port
        self._port: int | None = None
        self._projects: dict[str, ProjectRecord] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Dashboard:
        self._folder = tempfile.TemporaryDirectory(prefix="experiment-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        finally:
            self._folder.cleanup()

    def serve(self, project: ProjectRecord) -> str | None:
        """The address of this project's page, once it is there; None without a dashboard.

        The coordinator starts with the first project, and again with one that is new or another than before: for a
        second or two the page is away. Raises CoordinatorUnreachable.
        """
        if self._wanted_port is None:
            return None
        if self._projects.get(project.id) != project or self._process is None or self._process.poll() is not None:
            known = project.id in self._projects
            self._projects[project.id] = project
            self._stop()
            self._start()
            if not known:
                print(f"dashboard: {self._url(project)}", flush=True)
        return self._url(project)

    @contextlib.contextmanager
    def curve(self, project: ProjectRecord, run: str) -> Iterator[Curve]:
        """Of a training that has no nodes at the coordinator. Raises CoordinatorUnreachable."""
        url = self.serve(project)
        if url is None:
            yield UNSEEN
            return
        with Swarm.connect(url, run=run) as swarm, Curve(swarm.report) as curve:
            yield curve

    def _url(self, project: ProjectRecord) -> str:
        return f"http://{HOST}:{self._port}/p/{project.id}"

    def _start(self) -> None:
        folder = Path(self._folder.name)
        if self._port is None:
            assert self._wanted_port is not None, "a coordinator was asked for"
            self._port = free_port(self._wanted_port)
        place = ["--host", HOST, "--port", str(self._port), "--dht-port", "0", "--data-dir", str(folder / "data")]
        files = []
        for project in self._projects.values():
            file = folder / f"{project.id}.toml"
            file.write_text(project_toml(project), "utf-8")
            files += ["--project-file", str(file)]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "learning_at_home.cli", "coordinator", *place, *files, "--exit-with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=child_environment(os.environ, folder, folder),
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=POLL_S * 10) as client:  # a proxy would ask its own machine
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"http://{HOST}:{self._port}/readyz").is_success:
                        return
                time.sleep(POLL_S)
        self._stop()
        log = (Path(self._folder.name) / "log").read_text("utf-8", "replace")
        raise CoordinatorUnreachable(f"the dashboard's coordinator did not start:\n{log[-LAST_WORDS:]}")

    def _stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def virtual_project(project_id: str, title: str) -> ProjectRecord:
    """Of an experiment whose nodes are simulated: its page has curves and no experts."""
    return ProjectRecord(id=project_id, title=title, description=VIRTUAL).check()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port: 0 to 65535")
    return int(text)


def add_flag(parser: argparse.ArgumentParser) -> None:
    """`--dashboard [PORT]`, which every experiment has: `Dashboard(options.dashboard)`."""
    parser.add_argument(
        "--dashboard",
        type=_port,
        nargs="?",
        const=DEFAULT_PORT,
        metavar="PORT",
        help=f"start a coordinator, whose page shows the runs while they go (at port {DEFAULT_PORT}, if it is free)",
    )
