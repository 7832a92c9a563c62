"""The coordinator and nodes as their owners start them: by their commands, as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 90.0  # torch is imported by four nodes at once on two cores that may be busy


class Processes:
    """Started processes by name, with their logs. Leaving the context ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait(10)

    def coordinator(self, port: int, project_file: Path) -> str:
        """Start one, wait until it answers; its project's address."""
        data = self.folder / "coordinator"
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(data)]
        self.start("coordinator", ["coordinator", *arguments, "--project-file", str(project_file)])
        root = f"http://127.0.0.1:{port}"
        self.until(lambda: httpx.get(f"{root}/readyz", timeout=2).status_code == 200, "the coordinator is ready")
        return f"{root}/p/digits"

    def node(self, name: str, url: str, patterns: Sequence[str]) -> None:
        experts = [argument for pattern in patterns for argument in ("--experts", pattern)]
        place = ["--data-dir", str(self.folder / name), "--device", "cpu", "--host", "127.0.0.1", "--name", name]
        self.start(name, ["node", "--coordinator", url, *experts, *place])

    def start(self, name: str, arguments: Sequence[str], folder: Path | None = None) -> None:
        """`lah` with these arguments; in this folder, where they name files by relative paths."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "learning_at_home.cli", *arguments]
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder
            )

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait(10)

    def stop(self, name: str, timeout_s: float = 15.0, number: signal.Signals = signal.SIGTERM) -> int:
        """End one politely; its exit code."""
        process = self._running.pop(name)
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise AssertionError(f"{name} did not stop within {timeout_s:g} s\n{self.log(name)}") from None

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
        """What `holds` returns once it is true. Fails with the logs when that takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if result := holds():
                    return result
            except httpx.HTTPError:
                pass
            time.sleep(0.1)  # polls another process over HTTP: there is nothing to be woken by
        raise AssertionError(f"after {timeout_s:g} s it is not so that {what}\n{self.logs()}")

    def log(self, name: str) -> str:
        return f"--- {name}\n" + "\n".join(
            (self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-15:]
        )

    def logs(self) -> str:
        return "\n".join(self.log(path.stem) for path in sorted(self.folder.glob("*.log")))
