"""The command lines of the demo's processes, as their own parsers would read them, and their environment."""

from __future__ import annotations

import sys
from pathlib import Path

from learning_at_home.demo.commands import MAX_NODES, NODE_NAMES, Commands, child_environment
from learning_at_home.demo.recipe import Recipe
from learning_at_home.readable_names import is_valid_name

COMMANDS = Commands(Recipe(steps=7, seed=3), num_nodes=4)


def test_a_node_hosts_its_share_and_listens_on_this_machine_only(tmp_path):
    command = COMMANDS.node(1, 8765, tmp_path / "a b")

    assert command[:4] == (sys.executable, "-m", "learning_at_home.cli", "node")
    flags = dict(zip(command[4:-1:2], command[5:-1:2], strict=True))
    assert command.count("--experts") == 2
    assert flags["--experts"] == "ffn1.[1:2].[0:4]"
    assert flags["--coordinator"] == "http://127.0.0.1:8765/p/digits"
    assert flags["--host"] == "127.0.0.1"
    assert flags["--data-dir"] == str(tmp_path / "a b")


def test_every_process_ends_with_its_parent():
    folder = Path("folder")
    commands = [
        COMMANDS.coordinator(1, folder, folder / "digits.toml"),
        COMMANDS.node(0, 1, folder),
        COMMANDS.trainer(1),
    ]

    assert all("--exit-with-parent" in command for command in commands)


def test_every_node_that_can_be_asked_for_has_a_valid_name_of_its_own():
    assert len(set(NODE_NAMES)) == MAX_NODES
    assert all(is_valid_name(name) for name in NODE_NAMES)


def test_children_use_one_thread_no_proxy_for_this_machine_and_no_settings_of_the_persons_own_node(tmp_path):
    parent = {"PATH": "/bin", "no_proxy": "intra.example", "LAH_NODE_DEVICE": "cuda:0", "OMP_NUM_THREADS": "64"}

    environment = child_environment(parent, tmp_path, tmp_path / "temporary")

    assert environment["PATH"] == "/bin"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["no_proxy"] == "intra.example,127.0.0.1,localhost"
    assert environment["NO_PROXY"] == "127.0.0.1,localhost"
    assert environment["LEARNING_AT_HOME_DIR"] == str(tmp_path)
    assert environment["TMPDIR"] == str(tmp_path / "temporary")  # torch leaves a folder there
    assert "LAH_NODE_DEVICE" not in environment
