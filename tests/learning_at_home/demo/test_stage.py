"""What happens on the demo's stage when a process ends too early, with small programs in the parts of the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from learning_at_home.demo.commands import Commands
from learning_at_home.demo.recipe import Recipe
from learning_at_home.demo.screen import Screen
from learning_at_home.demo.stage import DemoOptions, Stage
from learning_at_home.errors import CoordinatorUnreachable

DEADLINE_S = 30.0

COORDINATOR = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"nodes_online": 2, "updates_total": 96}).encode()
        self.send_response(200 if self.path == "/api/v1/projects/digits" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
NODE = "import sys; sys.stdin.read()"
TRAINER = """
print("a library says hello")
print('{"type":"waiting","alive":32,"wanted":32}')
print('{"type":"finished","accuracy":0.9,"steps":4,"rows_per_second":100.0,"calls":64,"failures":0,'
      '"goal_reached_at_step":4,"seconds":2.0}')
"""
WAITING_TRAINER = """
import sys
print('{"type":"waiting","alive":32,"wanted":32}', flush=True)
sys.stdin.read()
"""


class Understudies(Commands):
    """Each part is played by a small program."""

    __slots__ = ()
    coordinator_code = COORDINATOR
    trainer_code = TRAINER
    node_codes = (NODE, NODE)

    def coordinator(self, port: int, folder: Path, project_file: Path) -> tuple[str, ...]:
        assert project_file.exists()
        return (sys.executable, "-c", self.coordinator_code, str(port))

    def node(self, number: int, port: int, folder: Path) -> tuple[str, ...]:
        return (sys.executable, "-c", self.node_codes[number])

    def trainer(self, port: int) -> tuple[str, ...]:
        return (sys.executable, "-c", self.trainer_code)


class Audience(Screen):
    """A screen whose words can be read, and waited for."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        super().__init__(self.out, self.err, headless=False)

    async def hears(self, words: str) -> None:
        while words not in self.out.getvalue() + self.err.getvalue():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
async def _deadline() -> AsyncIterator[None]:
    async with asyncio.timeout(DEADLINE_S):
        yield


@pytest.fixture
def screen() -> Audience:
    return Audience()


def stage_of(
    kind: type[Understudies], folder: Path, screen: Screen, *, port: int = 0, exit_when_done: bool = True
) -> Stage:
    options = DemoOptions(kind(Recipe(), 2), port, frozen_experts=False, exit_when_done=exit_when_done, settle_s=0.0)
    return Stage(options, folder, screen)


def children() -> set[int]:
    """Those of this process that run; what another test left may still be ending, so compare with <=, not ==."""
    running = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                running.add(child.pid)
    return running


async def test_a_training_that_ends_well_gives_a_result_and_stops_every_process(tmp_path, screen):
    before = children()
    stage = stage_of(Understudies, tmp_path, screen)

    await stage.run()

    assert stage.result is not None
    assert (stage.result.accuracy, stage.result.steps, stage.result.calls) == (0.9, 4, 64)
    assert stage.result.expert_updates == 96
    assert screen.out.getvalue().startswith("dashboard: http://127.0.0.1:")
    assert children() <= before


async def test_the_page_stays_up_until_the_demo_is_cancelled(tmp_path, screen):
    before = children()
    stage = stage_of(Understudies, tmp_path, screen, exit_when_done=False)
    task = asyncio.create_task(stage.run())

    await screen.hears("until you press Ctrl-C")
    assert len(children() - before) == 3  # the coordinator and two nodes
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stage.result is not None
    assert children() <= before


async def test_when_the_port_is_taken_another_one_is_used_and_told(tmp_path, screen):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stage = stage_of(Understudies, tmp_path, screen, port=port)

        await stage.run()

    assert stage.result is not None
    assert f"127.0.0.1:{port}/" not in screen.out.getvalue()
    assert f"Port {port} is taken" in screen.err.getvalue()


async def test_a_coordinator_that_cannot_start_ends_the_demo_with_its_last_words(tmp_path, screen):
    class Broken(Understudies):
        coordinator_code = "import sys; sys.exit('the database is locked')"

    before = children()

    with pytest.raises(CoordinatorUnreachable):
        await stage_of(Broken, tmp_path, screen).run()

    assert "coordinator ended by itself with exit code 1" in screen.err.getvalue()
    assert "| the database is locked" in screen.err.getvalue()
    assert str(tmp_path / "logs" / "coordinator.log") in screen.err.getvalue()
    assert screen.out.getvalue() == ""
    assert children() <= before


async def test_a_coordinator_whose_port_is_snatched_away_is_started_again_on_another(tmp_path, screen):
    class Snatched(Understudies):
        # The first time another program is faster: it takes the port, and the coordinator finds it in use.
        coordinator_code = f"""
import pathlib, socket, subprocess, sys, time
flag = pathlib.Path({str(tmp_path / "snatched")!r})
if not flag.exists():
    flag.touch()
    thief = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, '-c', thief, sys.argv[1]], stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        import os
        os._exit(1)
{COORDINATOR}"""

    stage = stage_of(Snatched, tmp_path, screen)

    await stage.run()

    assert stage.result is not None
    assert (tmp_path / "snatched").exists()


async def test_a_node_that_dies_is_named_with_its_last_words_and_the_training_goes_on(tmp_path, screen):
    class OneWeakNode(Understudies):
        node_codes = (NODE, "import sys; sys.exit('no memory left')")
        trainer_code = WAITING_TRAINER

    task = asyncio.create_task(stage_of(OneWeakNode, tmp_path, screen).run())

    await screen.hears("goes on with 1 of 2 nodes")
    assert "calm-otter ended by itself with exit code 1" in screen.err.getvalue()
    assert "| no memory left" in screen.err.getvalue()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_without_any_node_the_training_stops(tmp_path, screen):
    class WeakNodes(Understudies):
        node_codes = ("", "")
        trainer_code = WAITING_TRAINER

    stage = stage_of(WeakNodes, tmp_path, screen)

    await stage.run()

    assert stage.result is None
    assert "No node is left" in screen.err.getvalue()


async def test_a_trainer_that_fails_leaves_no_result_and_its_last_words(tmp_path, screen):
    class BrokenTrainer(Understudies):
        trainer_code = "import sys; sys.exit('NotEnoughExperts: layer ffn0')"

    before = children()
    stage = stage_of(BrokenTrainer, tmp_path, screen)

    await stage.run()

    assert stage.result is None
    assert "trainer ended by itself with exit code 1" in screen.err.getvalue()
    assert "| NotEnoughExperts: layer ffn0" in screen.err.getvalue()
    assert children() <= before


async def test_the_training_outlives_the_coordinator_and_then_has_no_count_of_updates(tmp_path, screen):
    class PatientTrainer(Understudies):
        trainer_code = (
            f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): pass\n{TRAINER}"
        )

    before = children()
    stage = stage_of(PatientTrainer, tmp_path, screen)
    task = asyncio.create_task(stage.run())
    await screen.hears("dashboard: ")
    coordinator = next(pid for pid in children() - before if "HTTPServer" in " ".join(psutil.Process(pid).cmdline()))

    os.kill(coordinator, signal.SIGKILL)
    await screen.hears("coordinator was ended by signal 9")
    (tmp_path / "go").touch()
    await task

    assert stage.result is not None
    assert stage.result.expert_updates is None


async def test_a_folder_with_a_space_in_its_name_is_no_obstacle(tmp_path, screen):
    folder = tmp_path / "my own folder"
    folder.mkdir()
    stage = stage_of(Understudies, folder, screen)

    await stage.run()

    assert stage.result is not None
    with contextlib.suppress(FileNotFoundError):
        assert (folder / "logs" / "trainer.log").stat().st_size == 0
