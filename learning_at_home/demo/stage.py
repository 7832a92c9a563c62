"""The demo from the first process to the last: coordinator, nodes, trainer, in this order; what happens when one ends.

Composition only. Async; it ends by returning, by an error, or by being cancelled (a signal), and in every case the
supervisor's block has then stopped all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from learning_at_home.demo.commands import NODE_NAMES, Commands, child_environment, project_url
from learning_at_home.demo.coordinator_api import SETTLE_S, CoordinatorApi
from learning_at_home.demo.ports import free_port, is_free
from learning_at_home.demo.recipe import GOAL_ACCURACY, project_record, project_toml
from learning_at_home.demo.screen import DemoResult, Screen
from learning_at_home.demo.supervision import Child, ChildSpec, Supervisor
from learning_at_home.demo.trainer_messages import Finished, TrainerMessage, decode_line
from learning_at_home.errors import CoordinatorUnreachable, WireError

START_DEADLINE_S = 60.0  # of the coordinator; 3 s on two cores
START_POLL_S = 0.1
START_ATTEMPTS = 3  # a port that was free a moment ago may be taken by another program
STOP_TRAINER, STOP_NODES, STOP_COORDINATOR = 0, 1, 2  # so that none waits for an answer of one that is gone


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line said."""

    commands: Commands
    port: int
    frozen_experts: bool
    exit_when_done: bool
    settle_s: float = SETTLE_S  # how long the hosts' counts must stand still to be taken for the last ones


class Stage:
    """One performance. `result` is there once the training has ended well, also when `run` is cancelled later."""

    def __init__(self, options: DemoOptions, folder: Path, screen: Screen) -> None:
        self._options = options
        self._folder = folder
        self._screen = screen
        self._port = 0
        self._living_nodes = options.commands.num_nodes
        self.result: DemoResult | None = None

    async def run(self) -> None:
        """Returns when the training has ended, or never without `exit_when_done`: then only cancelling ends it.

        No result afterwards: the trainer failed, and the screen has said why. Raises CoordinatorUnreachable when the
        coordinator does not start.
        """
        started = time.monotonic()
        async with Supervisor() as supervisor:
            coordinator = await self._start_coordinator(supervisor)
            self._screen.address(project_url(self._port))
            nodes = [await self._start_node(supervisor, number) for number in range(self._options.commands.num_nodes)]
            command = self._options.commands.trainer(self._port)
            trainer = await supervisor.start(self._spec("trainer", command, speaks=True), stop_order=STOP_TRAINER)
            async with asyncio.TaskGroup() as watchers:
                watching = [watchers.create_task(self._watch_coordinator(coordinator))]
                watching += [watchers.create_task(self._watch_node(supervisor, node, trainer)) for node in nodes]
                finished = await self._follow(trainer)
                if finished is not None:
                    seconds = time.monotonic() - started
                    await self._show_result(finished, seconds)
                    if not self._options.exit_when_done:
                        self._screen.news("The page stays up until you press Ctrl-C.")
                        await asyncio.Event().wait()
                for task in watching:
                    task.cancel()

    async def _start_coordinator(self, supervisor: Supervisor) -> Child:
        project_file = self._folder / "digits.toml"
        record = project_record(frozen_experts=self._options.frozen_experts)
        await asyncio.to_thread(project_file.write_text, project_toml(record), "utf-8")
        preferred = self._options.port
        for _ in range(START_ATTEMPTS):
            self._port = free_port(preferred)
            command = self._options.commands.coordinator(self._port, self._folder / "coordinator", project_file)
            coordinator = await supervisor.start(self._spec("coordinator", command), stop_order=STOP_COORDINATOR)
            if await self._answers(coordinator):
                if self._options.port not in (0, self._port):
                    self._screen.news(f"Port {self._options.port} is taken; using {self._port}.")
                return coordinator
            preferred = 0
            if coordinator.is_running or is_free(self._port):  # then the port was not the reason
                break
            await supervisor.stop([coordinator])
        await self._tell_the_end(coordinator)
        raise CoordinatorUnreachable("the demo's coordinator did not start")

    async def _answers(self, coordinator: Child) -> bool:
        """Wait until the coordinator serves the project; False when it ended first or took too long."""
        deadline = time.monotonic() + START_DEADLINE_S
        async with CoordinatorApi(self._port) as api:
            while coordinator.is_running and time.monotonic() < deadline:
                if await api.serves_project():
                    return True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(coordinator.wait(), START_POLL_S)
        return False

    async def _start_node(self, supervisor: Supervisor, number: int) -> Child:
        name = NODE_NAMES[number]
        command = self._options.commands.node(number, self._port, self._folder / name)
        return await supervisor.start(self._spec(name, command), stop_order=STOP_NODES)

    def _spec(self, name: str, command: tuple[str, ...], *, speaks: bool = False) -> ChildSpec:
        environment = child_environment(os.environ, self._folder / name, self._folder)
        return ChildSpec(name, command, environment, self._folder / "logs" / f"{name}.log", speaks)

    async def _follow(self, trainer: Child) -> Finished | None:
        """Pass on what the trainer says; its last word, or None when it ended without one."""
        finished = None
        async with contextlib.aclosing(trainer.lines()) as lines:
            async for line in lines:
                message = _message(line)
                if isinstance(message, Finished):
                    finished = message
                elif message is not None:
                    self._screen.progress(message, time.monotonic())
        await trainer.wait()
        if finished is None:
            await self._tell_the_end(trainer)
        return finished

    async def _watch_coordinator(self, coordinator: Child) -> None:
        await coordinator.wait()
        await self._tell_the_end(coordinator)
        self._screen.news(
            "The page is gone with it." if self.result else "The training goes on without it and the page."
        )

    async def _watch_node(self, supervisor: Supervisor, node: Child, trainer: Child) -> None:
        await node.wait()
        self._living_nodes -= 1
        await self._tell_the_end(node)
        if self.result is not None:
            return
        if self._living_nodes:
            self._screen.news(
                f"The training goes on with {self._living_nodes} of {self._options.commands.num_nodes} nodes."
            )
        else:
            self._screen.news("No node is left: the training stops.")
            await supervisor.stop([trainer])

    async def _show_result(self, finished: Finished, seconds: float) -> None:
        async with CoordinatorApi(self._port) as api:
            updates = await api.expert_updates(self._options.settle_s)
        self.result = DemoResult(
            accuracy=finished.accuracy,
            steps=finished.steps,
            rows_per_second=finished.rows_per_second,
            calls=finished.calls,
            failures=finished.failures,
            expert_updates=updates,
            seconds=seconds,
        )
        self._screen.result(self.result, GOAL_ACCURACY)

    async def _tell_the_end(self, child: Child) -> None:
        code = await child.wait() if not child.is_running else None
        lines = "".join(f"\n  | {line}" for line in await child.last_log_lines())
        log = f" Its last lines, from {child.spec.log_path}:{lines}" if lines else " Its log is empty."
        self._screen.news(f"{child.name} {_how_it_ended(code)}.{log}")


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return f"did not answer within {START_DEADLINE_S:.0f} s"
    return f"was ended by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"


def _message(line: bytes) -> TrainerMessage | None:
    """None for a line that some library of the trainer printed."""
    try:
        return decode_line(line)
    except WireError:
        return None
