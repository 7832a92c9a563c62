"""The wheel as a stranger gets it: built once, installed with one extra at a time, away from the checkout.

Each environment is an honest `pip install 'learning-at-home[EXTRA]'` at the versions of constraints.txt into a fresh
venv. Those with torch cost some 30 s each, which is why the tests of one extra share one environment.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_TIMEOUT_S = 300
START_TIMEOUT_S = 40  # the migrations of a new database and the import of FastAPI, on a busy machine
STOP_TIMEOUT_S = 15

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)]

SHARED_FOLDERS = {"templates": "dashboard/templates", "static": "dashboard/static", "migrations": "backend/migrations"}


@dataclass(frozen=True)
class Installation:
    """A venv that holds the wheel with one extra (or none), and an empty folder to run in."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """The finished process of a program of this environment, started in its empty folder."""
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder / "empty",
            env=foreign_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def can_import(self, module: str) -> bool:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        return self.run("python", "-c", code).returncode == 0


def foreign_environment() -> dict[str, str]:
    """The variables of this process without those that would lead Python back into the checkout."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installations(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Installation]]:
    """Gives the environment of an extra ("" for none), making it on first use; all are removed at the end."""
    made: dict[str, Installation] = {}

    def install(extra: str) -> Installation:
        if extra not in made:
            folder = tmp_path_factory.mktemp(f"env-{extra or 'base'}")
            made[extra] = Installation(folder)
            install_wheel(wheel, extra, folder)
        return made[extra]

    yield install
    for installation in made.values():
        shutil.rmtree(installation.folder)  # pytest would keep gigabytes of torch


def install_wheel(wheel: Path, extra: str, folder: Path) -> None:
    """Make `folder` a venv with the wheel in it; this environment's pip does it, to save installing one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    (folder / "empty").mkdir()
    requirement = f"learning-at-home[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    answer = subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", requirement],
        cwd=folder / "empty",
        env=foreign_environment(),
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("folder", SHARED_FOLDERS)
def test_the_wheel_carries_the_shared_folder(wheel: Path, folder: str):
    expected = {
        f"{SHARED_FOLDERS[folder]}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "learning_at_home",
        "node_agent",
        "backend",
        "dashboard",
    }
    assert "learning_at_home/py.typed" in names
    assert [name for name in names if name.endswith(".pyc")] == []


@pytest.mark.parametrize(
    "extra, present, absent",
    [
        ("", ["learning_at_home", "nacl", "zmq", "kademlia"], ["torch", "numpy", "fastapi", "sqlalchemy"]),
        ("trainer", ["torch"], ["fastapi", "sqlalchemy", "psutil"]),
        ("node", ["torch", "psutil", "pynvml"], ["fastapi", "sqlalchemy"]),
        ("coordinator", ["fastapi", "sqlalchemy", "alembic"], ["torch", "numpy"]),
    ],
)
def test_an_extra_brings_what_it_needs_and_nothing_heavy_beside(
    installations: Callable[[str], Installation], extra: str, present: list[str], absent: list[str]
):
    installation = installations(extra)

    assert [module for module in present if not installation.can_import(module)] == []
    assert [module for module in absent if installation.can_import(module)] == []


def test_the_installed_library_is_the_wheels_and_knows_its_version(installations: Callable[[str], Installation]):
    installation = installations("")

    where = installation.run("python", "-c", "import learning_at_home; print(learning_at_home.__file__)")
    version = installation.run("lah", "--version")

    assert Path(where.stdout.strip()).is_relative_to(installation.folder), where.stderr
    assert version.stdout.startswith("lah 0.")


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("node", ["--help"]),
        ("coordinator", ["--help"]),
        ("demo", ["--headless", "--exit"]),  # it loads without its extra, and asks for it before it starts anything
    ],
)
def test_a_command_without_its_extra_names_what_to_install(
    installations: Callable[[str], Installation], command: str, arguments: list[str]
):
    answer = installations("").run("lah", command, *arguments)

    assert answer.returncode == 3
    assert f"pip install 'learning-at-home[{command}]'" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_the_doctor_and_the_dht_need_no_extra(installations: Callable[[str], Installation], free_udp_port: int):
    examined = installations("").run("lah", "doctor", "--json")
    asked = installations("").run("lah", "dht", "peers", "--bootstrap", f"127.0.0.1:{free_udp_port}")

    checks = {check["name"]: check for check in json.loads(examined.stdout)["checks"]}
    assert (examined.returncode, examined.stderr) == (0, "")
    assert "pip install 'learning-at-home[node]'" in checks["extras"]["fix"]
    assert checks["torch"]["seen"].startswith("not installed")
    assert asked.returncode == 5, asked.stderr


def test_a_trainers_environment_has_the_sdk(installations: Callable[[str], Installation]):
    answer = installations("trainer").run(
        "python", "-c", "from learning_at_home import DMoE, GatingFunction, RemoteExpert, Swarm"
    )

    assert answer.returncode == 0, answer.stderr


def test_a_nodes_environment_runs_the_node_command(installations: Callable[[str], Installation]):
    answer = installations("node").run("lah", "node", "--help")

    assert answer.returncode == 0, answer.stderr
    assert "--coordinator" in answer.stdout


def test_a_coordinators_environment_serves_a_page_and_its_files(
    installations: Callable[[str], Installation], tmp_path: Path, free_tcp_port: int
):
    installation = installations("coordinator")
    address = f"http://127.0.0.1:{free_tcp_port}"
    log_path = tmp_path / "coordinator.log"
    command = ["coordinator", "--host", "127.0.0.1", "--port", str(free_tcp_port), "--project", "digits"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [installation.folder / "bin" / "lah", *command, "--data-dir", str(tmp_path / "data")],
            cwd=installation.folder / "empty",
            env=foreign_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        page = first_answer(f"{address}/p/digits", process, log_path)
        links = re.findall(r"(?:href|src)=\"(/static/[^\"]+)\"", page.text)
        files = {link: httpx.get(address + link).status_code for link in links}
    finally:
        exit_code = stopped(process)

    assert page.status_code == 200
    assert "digits" in page.text
    assert files
    assert {link: status for link, status in files.items() if status != 200} == {}
    assert exit_code == 0, log_path.read_text()


def first_answer(url: str, process: subprocess.Popen[bytes], log_path: Path) -> httpx.Response:
    """The first answer to a GET of `url`; the test fails with the log when the process ends or stays silent."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            return httpx.get(url)
        except httpx.TransportError:
            if process.poll() is not None:
                break
            time.sleep(0.2)  # a process outside: there is no event to wait for
    pytest.fail(f"no answer from {url} (exit code {process.poll()}):\n{log_path.read_text()}")


def stopped(process: subprocess.Popen[bytes]) -> int:
    """The exit code after SIGTERM, or after SIGKILL when that is not heeded."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
