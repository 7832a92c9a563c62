from pathlib import Path

import pytest

from dashboard.locate import shipped_folder
from learning_at_home.errors import ConfigError


def test_a_folder_inside_the_package_is_taken_first(tmp_path: Path):
    (tmp_path / "package" / "templates").mkdir(parents=True)
    (tmp_path / "templates").mkdir()

    assert shipped_folder(tmp_path / "package", "templates") == tmp_path / "package" / "templates"


def test_without_it_the_folder_beside_the_package_is_taken(tmp_path: Path):
    (tmp_path / "package").mkdir()
    (tmp_path / "templates").mkdir()

    assert shipped_folder(tmp_path / "package", "templates") == tmp_path / "templates"


def test_a_folder_in_neither_place_is_refused_by_its_name(tmp_path: Path):
    with pytest.raises(ConfigError, match="templates"):
        shipped_folder(tmp_path / "package", "templates")
