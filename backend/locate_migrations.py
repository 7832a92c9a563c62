"""Where Alembic's scripts lie: inside this package in an installed wheel, beside it in a checkout."""

from pathlib import Path

from dashboard.locate import shipped_folder

PACKAGE = Path(__file__).resolve().parent


def migrations_folder() -> Path:
    """The `script_location` for Alembic. Raises ConfigError when the installation lacks it."""
    return shipped_folder(PACKAGE, "migrations")
