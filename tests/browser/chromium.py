"""The Chromium that the browser tests drive: found, or installed by `python -m tests.browser.chromium`.

In this order: one on the PATH; Debian's package, when we are root on a Debian; Playwright's own download. (Ubuntu's
package is only a pointer to a snap, which cannot start inside a container.) Plain, blocking code.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_S = 30  # `--version` answers in 0.1 s from a warm disk, in some seconds from a cold one
ADVICE = (
    "The browser tests need a Chromium, and none could be installed. "
    "Put one on the PATH (Debian: apt-get install chromium) and run this again."
)


def find_chromium() -> Path | None:
    """The executable to pass to Playwright's `launch(executable_path=...)`, or None when there is none yet."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None and _starts(Path(found)):
            return Path(found)
    downloaded = _downloaded_by_playwright()
    return downloaded if downloaded is not None and _starts(downloaded) else None


def install_chromium() -> None:
    """Install one by the gentlest road open to this user; the tools' own output tells how it went."""
    if os.geteuid() == 0 and _is_debian():
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False)
        subprocess.run(
            ["apt-get", "install", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
            env=quiet,
            check=False,
        )
        if find_chromium() is not None:
            return
    with_libraries = ["--with-deps"] if os.geteuid() == 0 else []
    subprocess.run([sys.executable, "-m", "playwright", "install", *with_libraries, "chromium"], check=False)


def main() -> int:
    """Exit code 0 and the browser's path on standard output when the browser tests can run."""
    if find_chromium() is None:
        install_chromium()
    path = find_chromium()
    if path is None:
        print(ADVICE, file=sys.stderr)
        return 1
    print(f"browser tests use {path}")
    return 0


def _starts(path: Path) -> bool:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, timeout=START_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def _downloaded_by_playwright() -> Path | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if path.exists() else None


def _is_debian() -> bool:
    try:
        return platform.freedesktop_os_release().get("ID") == "debian"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
