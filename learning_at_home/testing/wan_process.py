"""WanProxies in a process of their own: what moves bytes does not take the interpreter from a trainer's threads.

Synchronous; one thread at a time. The process is told what to do by lines of JSON and ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

from learning_at_home.client.loop_thread import LoopThread
from learning_at_home.errors import NetworkError, UsageError
from learning_at_home.testing.wan import Wan, WanCounters
from learning_at_home.testing.wan_proxy import PERFECT, WanProxy

TIMEOUT_S = 20.0  # the interpreter starts, and the machine may be busy
SEEDS_APART = 7_919  # between the seeds of neighbours: lines of one seed would draw the same


class WanProcess:
    """Starts with the context; all its lines end with it."""

    def __init__(self) -> None:
        self.ports: list[int] = []  # where each line is entered, by number

    def __enter__(self) -> WanProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from learning_at_home.testing import wan_process; wan_process.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, to_host: str, to_port: int, wan: Wan = PERFECT) -> int:
        """The number of a new line to there; `ports[number]` of the loopback address leads into it.

        Its seed is made of the Wan's and the number, so that lines of one Wan draw differently.
        """
        self.ports.append(int(self._ask("open", to=[to_host, to_port], wan=asdict(wan))))
        return len(self.ports) - 1

    def change(self, wan: Wan, number: int | None = None) -> None:
        """Of one line, or of all. What is under way arrives as it would have; seeds stay."""
        self._ask("change", number, wan=asdict(wan))

    def cut(self, number: int | None = None) -> int:
        """End all connections of a line, or of all, at once; how many there were."""
        return int(self._ask("cut", number))

    def stall(self, number: int | None = None) -> None:
        """Deliver nothing any more over a line, or over all, and end nothing."""
        self._ask("stall", number)

    def go_on(self, number: int | None = None) -> None:
        """After `stall`: what was held is delivered now."""
        self._ask("go_on", number)

    def counters(self, number: int) -> WanCounters:
        return WanCounters(**self._ask("counters", number))

    def close(self) -> None:
        """May be called twice."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, do: str, number: int | None = None, **more: object) -> Any:
        """Raises UsageError for what the process refuses, NetworkError when it has ended or does not answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, "number": number, **more}) + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise NetworkError("the process of the proxies has ended") from error
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(TIMEOUT_S):
                raise NetworkError(f"the process of the proxies did not answer {do!r} in {TIMEOUT_S:.0f} s")
        line = stdout.readline()
        if not line:
            raise NetworkError("the process of the proxies has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["value"]


def main() -> None:
    """The process: obey until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it, and then ends the input
    loop = LoopThread("wan-proxies")
    with contextlib.ExitStack() as opened:
        opened.callback(loop.close, TIMEOUT_S)
        proxies: list[WanProxy] = []
        for line in sys.stdin:
            try:
                answer = {"value": _obey(json.loads(line), proxies, loop, opened)}
            except Exception as error:  # noqa: BLE001 - the edge: whoever asked is told
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        for proxy in proxies:
            proxy.close()


def _obey(message: dict[str, Any], proxies: list[WanProxy], loop: LoopThread, opened: contextlib.ExitStack) -> object:
    if message["do"] == "open":
        wan = Wan(**message["wan"])
        wan = replace(wan, seed=wan.seed + SEEDS_APART * len(proxies))
        host, port = message["to"]
        proxies.append(opened.enter_context(WanProxy(host, port, wan, loop=loop)))
        return proxies[-1].port
    number = message["number"]
    of = proxies if number is None else [proxies[number]]
    ways: dict[str, Callable[[WanProxy], object]] = {
        "change": lambda proxy: proxy.change(Wan(**message["wan"])),
        "cut": WanProxy.cut,
        "stall": WanProxy.stall,
        "go_on": WanProxy.go_on,
        "counters": lambda proxy: asdict(proxy.counters),
    }
    done = [ways[message["do"]](proxy) for proxy in of]
    if message["do"] == "cut":
        return sum(int(str(each)) for each in done)
    return done[0] if message["do"] == "counters" else None
