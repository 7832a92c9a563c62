"""The version of this installation, and how it calls itself to its peers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("learning-at-home")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

AGENT = f"learning-at-home/{__version__}"
