"""The command lines of the demo's processes, and what they find in their environment.

This is all that the demo knows of the coordinator and the nodes: it starts them as their owners would. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from learning_at_home.data_folders import HOME_VARIABLE
from learning_at_home.demo.ports import HOST
from learning_at_home.demo.recipe import PROJECT_ID, Recipe, share_of_node

MAX_NODES = 16  # one per cell of a layer
NODE_NAMES = (
    "brisk-heron", "calm-otter", "bold-finch", "happy-lynx", "hardy-bison", "jolly-crane", "keen-falcon", "kind-robin",
    "mild-panda", "noble-stork", "neat-wren", "quick-hare", "rosy-plover", "sunny-tapir", "warm-gecko", "witty-raven",
)  # fmt: skip
SETTINGS_PREFIX = "LAH_"
LOOPBACK = "127.0.0.1,localhost"


def project_url(port: int) -> str:
    """Where nodes and the trainer connect, and what a browser opens."""
    return f"http://{HOST}:{port}/p/{PROJECT_ID}"


@dataclass(frozen=True, slots=True)
class Commands:
    """The command lines of one demo. Tests let other programs play the parts."""

    recipe: Recipe
    num_nodes: int

    def coordinator(self, port: int, folder: Path, project_file: Path) -> tuple[str, ...]:
        """A coordinator of one project, its database in `folder`."""
        place = ["--host", HOST, "--port", str(port), "--dht-port", "0", "--data-dir", str(folder)]
        return _lah("coordinator", *place, "--project-file", str(project_file), "--exit-with-parent")

    def node(self, number: int, port: int, folder: Path) -> tuple[str, ...]:
        """Node `number`, with its share of every layer's cells."""
        patterns = share_of_node(number, self.num_nodes)
        experts = [argument for pattern in patterns for argument in ("--experts", pattern)]
        place = ["--name", NODE_NAMES[number], "--data-dir", str(folder), "--device", "cpu", "--host", HOST]
        return _lah("node", "--coordinator", project_url(port), *experts, *place, "--exit-with-parent")

    def trainer(self, port: int) -> tuple[str, ...]:
        """The trainer; it speaks on standard output: see trainer_messages."""
        recipe = self.recipe
        numbers = ["--steps", str(recipe.steps), "--seed", str(recipe.seed), "--budget-s", str(recipe.budget_s)]
        module = "learning_at_home.demo.trainer"
        return (sys.executable, "-m", module, project_url(port), *numbers, "--exit-with-parent")


def child_environment(parent: Mapping[str, str], folder: Path, temporary: Path) -> dict[str, str]:
    """The parent's, with folders of the demo's own, one torch thread, and no proxy between processes of one machine.

    Settings of the person's own node or coordinator (LAH_NODE_...) are none of the demo's.
    Six processes share the cores already: more threads in each only make them wait for one another.
    """
    bypassed = {
        name: f"{parent[name]},{LOOPBACK}" if parent.get(name) else LOOPBACK for name in ("NO_PROXY", "no_proxy")
    }
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    kept = {name: value for name, value in parent.items() if not name.startswith(SETTINGS_PREFIX)}
    return {**kept, **bypassed, **threads, HOME_VARIABLE: str(folder), "TMPDIR": str(temporary)}


def _lah(*arguments: str) -> tuple[str, ...]:
    """By the interpreter rather than by `lah` itself, whose first line breaks in a path with a space."""
    return (sys.executable, "-m", "learning_at_home.cli", *arguments)
