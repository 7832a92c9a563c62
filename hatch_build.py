"""Put the pages' files and the migrations inside the wheel's packages.

They stand at the root of the checkout, because people look for them there; an installed package can only find what
lies inside it. In an editable install nothing is added: dashboard/locate.py and backend/locate_migrations.py then
find the folders beside the packages, so that an edited template shows at once.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACES = {
    "templates": "dashboard/templates",
    "static": "dashboard/static",
    "migrations": "backend/migrations",
}


class IncludeSharedFolders(BuildHookInterface[BuilderConfig]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add each folder at its place; a missing one stops the build, since the wheel would open no page."""
        if version != "standard":
            return
        for folder, place in PLACES.items():
            path = Path(self.root, folder)
            if not path.is_dir():
                raise FileNotFoundError(f"the wheel needs {folder}/, which {self.root} does not have")
            build_data["force_include"][str(path)] = place
