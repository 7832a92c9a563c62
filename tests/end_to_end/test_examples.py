"""The quickstart's commands as they are printed, and the examples on the swarm that they start."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.end_to_end.processes import Processes

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "quickstart.md"
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
PRINTED_PORT = "8765"  # the coordinator's default, which may be taken where tests run
DEADLINE_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE_S)]


def printed_commands() -> list[list[str]]:
    """The quickstart's, in order, as a shell would split them."""
    blocks = re.findall(r"```sh\n(.*?)```", QUICKSTART.read_text("utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


SET_UP, ACTIVATE, COORDINATOR, ALICE, BOB, TRAIN = printed_commands()


@dataclass(frozen=True, slots=True)
class QuickstartSwarm:
    """The quickstart's four terminals, the trainer's not yet in use; `folder` stands for the clone."""

    processes: Processes
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/p/spirals"

    def command(self, printed: list[str]) -> list[str]:
        """With this swarm's port and this interpreter."""
        program, *arguments = (word.replace(f":{PRINTED_PORT}/", f":{self.port}/") for word in printed)
        return {"lah": [], "python": [sys.executable]}[program] + arguments

    def start(self, name: str, printed: list[str]) -> None:
        self.processes.start(name, self.command(printed), self.folder)

    def view(self) -> Any:
        return httpx.get(self.url.replace("/p/", "/api/v1/projects/") + "/view", timeout=5).json()

    def num_serving(self) -> int:
        return sum(cell[0] == "serving" for layer in self.view()["layers"] for cell in layer["cells"])

    def example(self, arguments: list[str]) -> subprocess.Popen[str]:
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            arguments,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickstartSwarm]:
    """Steps 2 and 3 of the quickstart, until every expert serves."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        program, *coordinator = COORDINATOR
        assert program == "lah"
        processes.start("coordinator", [*coordinator, "--port", "0"], folder)
        address = processes.until(
            lambda: re.search(r"http://127\.0\.0\.1:(\d+)/", processes.log("coordinator")), "the coordinator serves"
        )
        swarm = QuickstartSwarm(processes, folder, int(address[1]))
        swarm.start("alice", ALICE)
        swarm.start("bob", BOB)
        processes.until(lambda: swarm.num_serving() == 16, "all 16 experts serve")
        yield swarm


def test_the_quickstart_begins_as_every_checkout_does() -> None:
    """What comes before the swarm was done already where tests run: only that it is still called so is looked at."""
    assert SET_UP == ["make", "setup"]
    assert ACTIVATE == [".", ".venv/bin/activate"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "\nsetup: " in makefile
    assert "-m venv .venv\n" in makefile


def test_the_quickstart_trains_and_goes_on_while_a_node_leaves_and_returns(swarm: QuickstartSwarm) -> None:
    with swarm.example([*swarm.command(TRAIN), "60"]) as trainer:
        assert trainer.stdout is not None
        assert trainer.stderr is not None
        try:
            assert trainer.stdout.readline().strip() == f"watch it at {swarm.url}"
            assert trainer.stdout.readline().startswith("step 20: loss ")
            assert swarm.processes.stop("bob", number=signal.SIGINT) == 0
            lines = trainer.stdout.read().splitlines()
            assert trainer.wait(DEADLINE_S) == 0, trainer.stderr.read()
        finally:
            trainer.kill()
    accuracy = float(lines[-1].split("accuracy ")[1].split(",")[0])
    page = httpx.get(swarm.url, timeout=5)
    swarm.start("bob", BOB)

    assert lines[-1].startswith("step 60: ")
    assert accuracy > 0.6, lines  # a guess has 0.33, this 0.85
    assert page.status_code == 200
    assert swarm.view()["charts"]["loss"]["x"]  # the curve that the page draws
    swarm.processes.until(lambda: swarm.num_serving() == 16, "bob is back")


def test_a_foreign_gpt2_learns_with_a_mixture_in_it(swarm: QuickstartSwarm) -> None:
    with swarm.example([sys.executable, "examples/gpt2_with_dmoe.py", swarm.url, "20"]) as example:
        try:
            out, err = example.communicate(timeout=DEADLINE_S)
        finally:
            example.kill()

    assert example.returncode == 0, err
    bits_per_byte = {
        block: float(line.split()[-1])
        for line in out.splitlines()
        for block in ("its own, frozen", "its own", "a DMoE")
        if line.startswith(f"{block}  ")
    }
    assert len(bits_per_byte) == 3, out
    assert max(bits_per_byte.values()) < 6.0, out  # 8 is a guess; the frequencies of bytes alone give about 5
    assert re.search(r"^0 of [1-9]\d+ calls to experts failed$", out, re.MULTILINE), out
    assert "sample: 'def " in out


def test_the_notebook_is_kept_without_what_a_run_leaves_in_it() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None or cell.metadata] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}  # no version of whoever ran it last


async def test_the_notebook_runs_in_a_kernel(
    swarm: QuickstartSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))  # not into the home of whoever runs the tests
    monkeypatch.setenv("LAH_PROJECT_URL", swarm.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    await NotebookClient(notebook, timeout=DEADLINE_S, kernel_name="python3").async_execute()  # raises what a cell does

    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    before, after = map(float, re.findall(r"\d\.\d+", shown["steps"][0].text))
    assert after < before
    assert "experts live" in shown["grid"][0].text
    assert "<polyline" in shown["plot"][0].data["image/svg+xml"]
    assert "forward of ffn0, 256 rows" in shown["traced"][0].text
    assert " 0 failed" in shown["counts"][0].text
