"""The house's directions, and what importing a room costs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_FREE = [
    "learning_at_home",
    "learning_at_home.cli",
    "learning_at_home.wire",
    "learning_at_home.transport",
    "learning_at_home.dht",
    "learning_at_home.directory",
    "learning_at_home.tools",
    "backend",
    "dashboard",
]
# The heavy or foreign things each kind of peer has no use for.
UNWANTED_BY_A_TRAINER = ["fastapi", "sqlalchemy", "alembic", "jinja2", "uvicorn", "starlette"]

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
name, unwanted = sys.argv[1], sys.argv[2].split(",")
package = importlib.import_module(name)
if hasattr(package, "__path__") and name != "learning_at_home":
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print(*[module for module in unwanted if module in sys.modules])
"""


def loaded_by(package: str, unwanted: list[str]) -> list[str]:
    """Which of `unwanted` a fresh interpreter holds after importing `package` with all that is in it.

    The library as a whole has rooms that need torch: of `learning_at_home` itself only the package is imported.
    """
    answer = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, package, ",".join(unwanted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


@pytest.mark.slow
def test_every_import_contract_holds():
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    answer = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", TORCH_FREE)
def test_importing_it_does_not_import_torch(package: str):
    assert loaded_by(package, ["torch"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("package", ["learning_at_home.client", "node_agent"])
def test_importing_it_imports_no_web_framework(package: str):
    assert loaded_by(package, UNWANTED_BY_A_TRAINER) == []


@pytest.mark.slow
def test_the_command_lists_its_subcommands_without_importing_them():
    code = (
        "import sys, contextlib\n"
        "from learning_at_home import cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main(['--help'])\n"
        "rooms = ('torch', 'fastapi', 'node_agent', 'backend')\n"
        "print(*[room for room in rooms if room in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert "coordinator" in answer.stdout
    assert answer.stderr.split() == []
