"""What `lah doctor` looks at without a network: versions, extras, torch, the data folder. Async.

Imports none of the extras: torch is tried in a process of its own, which may take as long as it likes and be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec
from pathlib import Path

from learning_at_home.tools.checks import Check, failed, ok, on_a_thread, warning, within
from learning_at_home.tools.plain_text import duration, size
from learning_at_home.version import __version__

DISTRIBUTION = "learning-at-home"
EXTRAS = {"node": "lah node", "trainer": "training", "coordinator": "lah coordinator"}
OLDEST_PYTHON = (3, 11)  # as in pyproject.toml
LEAST_FREE_BYTES = 1_000_000_000  # checkpoints and a database
TORCH_TIMEOUT_S = 8.0  # it is imported in a second or two; on a cold disk in several
DISK_TIMEOUT_S = 3.0
_NEEDS = re.compile(r"(?P<name>[A-Za-z0-9._-]+)[^;]*;\s*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")
_TRY_TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(number) for number in range(count)]
print(json.dumps({
    "version": torch.__version__, "built_for": torch.version.cuda or torch.version.hip or "",
    "gpus": [gpu.name for gpu in gpus], "memory": [gpu.total_memory for gpu in gpus],
    "threads": torch.get_num_threads(),
}))
"""


async def check_version() -> Check:
    python = platform.python_version()
    seen = f"Python {python}, {DISTRIBUTION} {__version__}, {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return failed("version", seen, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    if __version__.startswith("0+"):
        return warning("version", seen, "this is a folder that was never installed: pip install -e . inside it")
    return ok("version", seen)


async def check_extras() -> Check:
    """Which of the roles this machine has the packages for; nobody needs all."""
    missing = missing_packages(requires(DISTRIBUTION) if not __version__.startswith("0+") else None)
    whole = [extra for extra in EXTRAS if not missing[extra]]
    lacking = [extra for extra in EXTRAS if missing[extra]]
    wanted = "; ".join(
        f"for {EXTRAS[extra]} (lacks {', '.join(missing[extra])}): pip install '{DISTRIBUTION}[{extra}]'"
        for extra in lacking
    )
    if not whole:
        return warning("extras", "none is complete: this machine can run `lah dht` only", wanted)
    return ok("extras", f"complete: {', '.join(whole)}" + (f". {wanted[0].upper()}{wanted[1:]}" if wanted else ""))


def missing_packages(needs: Sequence[str] | None) -> dict[str, list[str]]:
    """By extra the distributions that it needs and that are not installed. `needs` as the metadata lists them."""
    missing: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for need in needs or ():
        match = _NEEDS.match(need)
        if match is not None and match["extra"] in missing and not _is_installed(match["name"]):
            missing[match["extra"]].append(match["name"])
    return missing


async def check_torch() -> Check:
    """Whether torch can be used, and on what."""
    if find_spec("torch") is None:
        return ok("torch", "not installed; only nodes and trainers need it")
    broken = f"pip install --force-reinstall torch, and see what `{sys.executable} -c 'import torch'` says"
    late = warning(
        "torch",
        f"still importing after {duration(TORCH_TIMEOUT_S)}: a busy machine, a cold disk, or a driver that hangs",
        "try again; if it stays so, see what `nvidia-smi` says, and how long `python -c 'import torch'` takes",
    )
    return await within(_try_torch(broken), TORCH_TIMEOUT_S, late)


async def _try_torch(broken: str) -> Check:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _TRY_TORCH,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found = json.loads(out)
    except ValueError:
        last = (err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return failed("torch", f"it is installed but cannot be imported: {last[:200]}", broken)
    gpus = [f"{name} ({size(num_bytes)})" for name, num_bytes in zip(found["gpus"], found["memory"], strict=True)]
    device = ", ".join(gpus) if gpus else f"no GPU, {found['threads']} CPU threads"
    seen = f"torch {found['version']}: {device}"
    if not gpus and _has_nvidia_driver():
        if not found["built_for"]:
            return warning("torch", f"{seen}, although a driver is here", "install a CUDA build: https://pytorch.org")
        words = f"{seen}, although a driver is here and torch is built for CUDA {found['built_for']}"
        return warning("torch", words, "see what `nvidia-smi` says; the driver may be too old for this build of torch")
    return ok("torch", seen)


async def check_data_folder(folder: Path) -> Check:
    """Whether keys and databases can be kept there. Makes nothing that stays."""
    late = failed(
        "data folder",
        f"{folder} did not answer within {duration(DISK_TIMEOUT_S)}",
        "is it on a network disk that is gone? Choose another by --data-dir or LEARNING_AT_HOME_DIR",
    )
    return await within(_look_at_folder(folder), DISK_TIMEOUT_S, late)


async def _look_at_folder(folder: Path) -> Check:
    return await on_a_thread(lambda: look_at_folder(folder))


def look_at_folder(folder: Path) -> Check:
    """Blocking. Where the folder is missing, whether it could be made."""
    fix = "give your user the right to write there, or choose another by --data-dir or LEARNING_AT_HOME_DIR"
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return failed("data folder", f"{place} is no folder", fix)
    try:
        if place == folder:
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif not os.access(place, os.W_OK | os.X_OK):
            return failed("data folder", f"{folder} does not exist, and {place} cannot be written", fix)
        free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        return failed("data folder", f"{folder} cannot be written: {error.strerror or error}", fix)
    seen = f"{folder}{'' if place == folder else ' (will be made)'}, {size(free_bytes)} free"
    if free_bytes < LEAST_FREE_BYTES:
        return warning("data folder", seen, "make room: checkpoints and the coordinator's database grow there")
    return ok("data folder", seen)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
