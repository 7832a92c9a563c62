"""Supervision, with real child processes: small Python programs that say on standard output that they are ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from learning_at_home.demo.supervision import Child, ChildSpec, Supervisor

DEADLINE_S = 20.0  # a Python process starts in 0.05 s; two busy cores may take a hundred times as long
POLITE = "print('ready', flush=True); sys.stdin.read()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + POLITE


@pytest.fixture(autouse=True)
async def _deadline() -> AsyncIterator[None]:
    async with asyncio.timeout(DEADLINE_S):
        yield


def program(name: str, body: str, folder: Path, *, speaks: bool = True) -> ChildSpec:
    code = f"import os, signal, subprocess, sys\n{body}"
    return ChildSpec(name, (sys.executable, "-c", code), os.environ, folder / f"{name}.log", speaks)


async def first_line(child: Child) -> str:
    async with contextlib.aclosing(child.lines()) as lines:
        return (await anext(lines)).decode().strip()


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pid: int) -> None:
    """Return when no such process runs any more. It may be nobody's child here, so there is nothing to wait on."""
    while runs(pid):
        await asyncio.sleep(0.01)


async def test_leaving_the_block_stops_every_child(tmp_path):
    async with Supervisor() as supervisor:
        children = [await supervisor.start(program(name, POLITE, tmp_path)) for name in ("alice", "bob")]
        for child in children:
            assert await first_line(child) == "ready"

    assert [await child.wait() for child in children] == [-signal.SIGTERM, -signal.SIGTERM]
    assert not any(runs(child.pid) for child in children)


async def test_a_child_that_ignores_the_polite_signal_is_killed_after_the_grace_time(tmp_path):
    async with Supervisor(stop_grace_s=0.05) as supervisor:
        carol = await supervisor.start(program("carol", STUBBORN, tmp_path))
        await first_line(carol)

    assert await carol.wait() == -signal.SIGKILL


async def test_a_cancelled_block_leaves_nothing_running(tmp_path):
    started = asyncio.get_running_loop().create_future()

    async def supervise() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(program("alice", POLITE, tmp_path))
            await first_line(child)
            started.set_result(child.pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(supervise())
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not runs(pid)


async def test_cancelling_again_while_stopping_kills_at_once(tmp_path):
    started = asyncio.get_running_loop().create_future()
    stopping = asyncio.Event()

    class Watched(Supervisor):
        async def stop(self, children):
            stopping.set()
            await super().stop(children)

    async def supervise() -> None:
        async with Watched(stop_grace_s=DEADLINE_S * 10) as supervisor:
            child = await supervisor.start(program("carol", STUBBORN, tmp_path))
            await first_line(child)
            started.set_result(child.pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(supervise())
    pid = await started
    task.cancel()
    await stopping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not runs(pid)


async def test_children_are_stopped_in_their_order(tmp_path):
    note = tmp_path / "order"
    body = (
        "def leave(*_):\n open({note!r}, 'a').write({name!r} + ' '); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, leave); print('ready', flush=True); sys.stdin.read()"
    )
    async with Supervisor() as supervisor:
        for name, stop_order in [("coordinator", 2), ("node", 1), ("trainer", 0)]:
            spec = program(name, body.format(note=str(note), name=name), tmp_path)
            await first_line(await supervisor.start(spec, stop_order=stop_order))

    assert note.read_text().split() == ["trainer", "node", "coordinator"]


async def test_what_a_child_started_is_stopped_with_it(tmp_path):
    body = (
        "p = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'])\n"
        "print(p.pid, flush=True); p.wait()"
    )
    async with Supervisor() as supervisor:
        grandchild = int(await first_line(await supervisor.start(program("alice", body, tmp_path))))
        assert runs(grandchild)

    await gone(grandchild)


async def test_a_child_that_says_more_than_anyone_reads_can_be_stopped(tmp_path):
    body = "print('ready', flush=True)\nwhile True: print('x' * 1000, flush=True)"
    async with Supervisor() as supervisor:
        child = await supervisor.start(program("bob", body, tmp_path))
        assert await first_line(child) == "ready"

    assert not child.is_running


async def test_lines_end_when_the_child_ends_and_its_exit_code_is_told(tmp_path):
    async with Supervisor() as supervisor:
        child = await supervisor.start(program("alice", "print('one'); print('two'); sys.exit(7)", tmp_path))

        assert [line async for line in child.lines()] == [b"one\n", b"two\n"]
        assert await child.wait() == 7


async def test_the_log_holds_the_last_words_of_a_child_that_failed(tmp_path):
    async with Supervisor() as supervisor:
        spec = program(
            "alice", "print('out'); sys.stdout.flush(); raise SystemExit('broken pipe dream')", tmp_path, speaks=False
        )
        child = await supervisor.start(spec)

        assert await child.wait() == 1
        assert await child.last_log_lines() == ["out", "broken pipe dream"]
        assert await child.last_log_lines(1) == ["broken pipe dream"]


async def test_a_program_that_does_not_exist_is_an_error_and_leaves_no_open_files(tmp_path):
    before = psutil.Process().num_fds()

    async with Supervisor() as supervisor:
        with pytest.raises(FileNotFoundError):
            await supervisor.start(
                ChildSpec("ghost", (str(tmp_path / "none"),), {}, tmp_path / "ghost.log", speaks=True)
            )
        assert supervisor.children == []

    assert psutil.Process().num_fds() <= before


async def test_no_file_stays_open_after_the_block(tmp_path):
    async with Supervisor() as supervisor:  # asyncio opens what it needs once
        await supervisor.start(program("warm-up", POLITE, tmp_path))
    before = psutil.Process().num_fds()

    async with Supervisor() as supervisor:
        await first_line(await supervisor.start(program("alice", POLITE, tmp_path)))
        await supervisor.start(program("bob", POLITE, tmp_path))  # nobody listens to him

    await asyncio.sleep(0)  # a closed transport lets its file go in the next turn of the loop
    assert psutil.Process().num_fds() <= before


async def test_a_killed_parent_takes_its_children_along(tmp_path):
    parent = f"""
import asyncio, os, sys
from pathlib import Path
from learning_at_home.demo.supervision import ChildSpec, Supervisor

FOLDER = Path({str(tmp_path)!r})
CODE = '''
import os, signal
from learning_at_home.parent_watch import exit_when_stdin_closes
exit_when_stdin_closes()
print(os.getpid(), flush=True)
signal.pause()
'''

async def main():
    async with Supervisor() as supervisor:
        for name in ("one", "two"):
            spec = ChildSpec(name, (sys.executable, "-c", CODE), os.environ, FOLDER / name, speaks=True)
            async for line in (await supervisor.start(spec)).lines():
                print(line.decode().strip(), flush=True)
                break
        await asyncio.Event().wait()

asyncio.run(main())
"""
    async with Supervisor() as supervisor:
        child = await supervisor.start(program("parent", parent, tmp_path))
        async with contextlib.aclosing(child.lines()) as lines:
            pids = [int(await anext(lines)), int(await anext(lines))]
        assert all(runs(pid) for pid in pids)

        os.kill(child.pid, signal.SIGKILL)

        for pid in pids:
            await gone(pid)
