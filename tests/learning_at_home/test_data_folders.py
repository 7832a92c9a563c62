"""Where things are kept."""

from pathlib import Path

import pytest

from learning_at_home.data_folders import HOME_VARIABLE, data_folder
from learning_at_home.errors import ConfigError


def test_one_variable_moves_everything(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))

    assert data_folder() == tmp_path / "data"
    assert list(tmp_path.iterdir()) == []


def test_by_default_it_is_the_systems_custom(monkeypatch):
    monkeypatch.delenv(HOME_VARIABLE, raising=False)

    assert data_folder().is_absolute()
    assert data_folder().name == "learning-at-home"


def test_a_relative_folder_is_refused(monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, "here")

    with pytest.raises(ConfigError, match=HOME_VARIABLE):
        data_folder()
