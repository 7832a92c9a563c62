"""Where the pages' files lie: inside this package in an installed wheel, beside it in a checkout.

The wheel gets them by hatch_build.py. Plain code, called once at start.
"""

from pathlib import Path

from learning_at_home.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


def templates_folder() -> Path:
    """The folder of the Jinja templates. Raises ConfigError when the installation lacks it."""
    return shipped_folder(PACKAGE, "templates")


def static_folder() -> Path:
    """The folder served under /static. Raises ConfigError when the installation lacks it."""
    return shipped_folder(PACKAGE, "static")


def shipped_folder(package: Path, name: str) -> Path:
    """The folder `name` in `package` or, failing that, beside it. Raises ConfigError when it is in neither place."""
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the {name} folder is neither in {package} nor beside it: install learning-at-home again")
