"""`python -m benchmarks.rivals.install`: make the rivals' environment, once. Takes some minutes and 1.5 GB."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.rivals.environment import ENVIRONMENT, INSTALLED, PYTHON, is_installed

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def main() -> int:
    """The exit code: 0 when the environment is there."""
    if is_installed() and INSTALLED.read_text("utf-8") == REQUIREMENTS.read_text("utf-8"):
        print(f"already there: {ENVIRONMENT}")
        return 0
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    venv.create(ENVIRONMENT, with_pip=True, symlinks=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=False)
    if done.returncode:
        print("the rivals could not be installed; their rows will say so", file=sys.stderr)
        return 1
    INSTALLED.write_text(REQUIREMENTS.read_text("utf-8"), "utf-8")
    print(f"installed: {ENVIRONMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
