"""A worker for the tests of sides: it measures what it is told to, and fails where it is told to."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.worker import Work, serve, settings_of


@dataclass(frozen=True)
class Settings:
    value: float = 1.0
    fails_at: str = ""
    log: str = ""


class EchoingWorker:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self._at("start")

    def check(self) -> None:
        self._at("check")

    def ready(self) -> None:
        self._at("ready")

    def measure(self, work: Work) -> float:
        self._at("measure")
        if work.name == "exit":
            print("some last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.settings.log:
            with Path(self.settings.log).open("a") as log:
                log.write(f"{self.settings.value:g} {work.name}\n")
        return self.settings.value

    def close(self) -> None:
        self.child.kill()
        self.child.wait()

    def _at(self, place: str) -> None:
        assert place != self.settings.fails_at, f"told to fail at {place}"


if __name__ == "__main__":
    serve(lambda: EchoingWorker(settings_of(Settings)))
