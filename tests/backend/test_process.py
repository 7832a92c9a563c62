"""`lah coordinator` as a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def start(folder: Path, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAH_")}
    command = [sys.executable, "-m", "learning_at_home.cli", "coordinator", "--port", "0", "--data-dir", str(folder)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT, env=environment, text=True, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Learning@home coordinator: http://127.0.0.1:"), process.stderr and process.stderr.read()
    return line.split()[2].rstrip("/")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_address_serves_and_stops_cleanly(tmp_path: Path, number: signal.Signals):
    with start(tmp_path / "with a space", "--project", "digits") as process:
        answer = httpx.get(f"{address(process)}/api/v1/projects/digits", trust_env=False, timeout=10)
        assert answer.json()["experts_total"] == 32
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)

    assert process.returncode == 0
    assert errors == ""


def test_it_ends_when_its_parent_lets_go_of_its_standard_input(tmp_path: Path):
    with start(tmp_path, "--project", "digits", "--exit-with-parent", stdin=subprocess.PIPE) as process:
        address(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0


def test_a_project_file_with_a_mistake_is_named(tmp_path: Path):
    (tmp_path / "p.toml").write_text('id = "digits"\nlayres = []\n')
    with start(tmp_path, "--project-file", str(tmp_path / "p.toml")) as process:
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "p.toml" in errors
    assert "layres" in errors
    assert "Traceback" not in errors
