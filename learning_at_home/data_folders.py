"""Where this machine keeps what outlives a process: keys and checkpoints, and apart from them what can be made anew.

Knows the operating system's customs (by platformdirs) and the one variable that overrides them; creates nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from learning_at_home.errors import ConfigError

HOME_VARIABLE = "LEARNING_AT_HOME_DIR"  # one folder for everything: containers, tests, several nodes on one machine
_APPLICATION = "learning-at-home"


def data_folder() -> Path:
    """Keys, checkpoints, databases: what must not be lost. Raises ConfigError when the variable is no absolute path."""
    home = _home()
    return home / "data" if home else Path(platformdirs.user_data_dir(_APPLICATION, appauthor=False))


def cache_folder() -> Path:
    """Peer caches and the like; may be deleted at any time. Raises ConfigError as `data_folder` does."""
    home = _home()
    return home / "cache" if home else Path(platformdirs.user_cache_dir(_APPLICATION, appauthor=False))


def _home() -> Path | None:
    text = os.environ.get(HOME_VARIABLE, "")
    if not text:
        return None
    home = Path(text).expanduser()
    if not home.is_absolute():
        raise ConfigError(f"{HOME_VARIABLE} is {text!r}; it must be an absolute path")
    return home
