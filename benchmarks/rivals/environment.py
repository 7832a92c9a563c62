"""Where the rivals live: an environment of their own, so that their pins are not ours."""

from __future__ import annotations

from benchmarks.sides import ROOT

ENVIRONMENT = ROOT / ".venv-rivals"
PYTHON = ENVIRONMENT / "bin" / "python"
INSTALLED = ENVIRONMENT / ".installed"  # written last: a broken download is no rival
HOW = "not installed here; python -m benchmarks.rivals.install makes its environment"
BY_QUICK = "left out by --quick"


def is_installed() -> bool:
    return INSTALLED.exists() and PYTHON.exists()


def missing(*, quick: bool) -> str | None:
    """Why there is no rival to measure; None when there is one."""
    if quick:
        return BY_QUICK
    return None if is_installed() else HOW
