"""The public import: complete, lazy, and helpful when something is missing."""

import subprocess
import sys
from importlib import import_module

import pytest

import learning_at_home
from learning_at_home import errors


@pytest.mark.parametrize("name", learning_at_home.__all__)
def test_every_public_name_exists(name: str):
    assert getattr(learning_at_home, name) is not None
    assert name in dir(learning_at_home)


def test_every_error_is_public():
    leaves = {error.__name__ for error in errors.CATALOGUE.values()}

    assert leaves <= set(learning_at_home.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'Swarms'"):
        _ = learning_at_home.Swarms


def test_without_torch_the_message_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("learning_at_home.client")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(learning_at_home), "DMoE", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'learning-at-home\[trainer\]'"):
        _ = learning_at_home.DMoE


@pytest.mark.slow
def test_records_and_errors_need_no_torch():
    code = (
        "import sys, learning_at_home as lah\n"
        "lah.ProjectRecord, lah.ExpertUid, lah.NotEnoughExperts, lah.__version__\n"
        "print('torch' in sys.modules, 'zmq.backend' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert answer.stdout.split() == ["False", "False"]


def test_the_names_are_those_of_their_modules():
    assert learning_at_home.Swarm is import_module("learning_at_home.client.swarm").Swarm
