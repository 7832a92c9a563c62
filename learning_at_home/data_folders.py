"""Where this machine keeps what outlives a process: keys, databases, later checkpoints.

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
    """Keys and databases: what must not be lost. Raises ConfigError when the variable is no absolute path."""
    text = os.environ.get(HOME_VARIABLE, "")
    if not text:
        return Path(platformdirs.user_data_dir(_APPLICATION, appauthor=False))
    home = Path(text).expanduser()
    if not home.is_absolute():
        raise ConfigError(f"{HOME_VARIABLE} is {text!r}; it must be an absolute path")
    return home / "data"
