"""Experts and optimizers of installed packages: loaded only from packages that the node's operator allows.

A package says by entry points what it brings, so that one that is not allowed is known by name without running any of
its code. What it registers when it is loaded, its registries know. Nothing is ever loaded from the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import EntryPoint, entry_points

from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec
from node_agent.experts.architectures import known_architectures
from node_agent.experts.update_rules import known_optimizers

EXPERTS_GROUP = "learning_at_home.experts"
OPTIMIZERS_GROUP = "learning_at_home.optimizers"
FLAG = "--allow-experts"


def load_extensions(layers: Iterable[LayerSpec], allowed: Collection[str]) -> None:
    """Load what these layers name and nothing has registered yet, from packages by the names that pip knows them by.

    Raises ConfigError that names the layer, and the flag where a package is installed and not allowed.
    """
    for layer in layers:
        owner = f"layer {layer.prefix}: architecture {layer.architecture!r}"
        load_extension(EXPERTS_GROUP, layer.architecture, known_architectures, allowed, owner)
        owner = f"layer {layer.prefix}: optimizer {layer.optimizer.name!r}"
        load_extension(OPTIMIZERS_GROUP, layer.optimizer.name, known_optimizers, allowed, owner)


def load_extension(
    group: str, name: str, known: Callable[[], Collection[str]], allowed: Collection[str], owner: str
) -> None:
    """Load what an allowed package has under this name. `known` names what is registered."""
    if name in known():
        return
    entries = list(entry_points(group=group, name=name))
    if not entries:
        raise ConfigError(
            f"{owner} is not installed here; there are: {', '.join(sorted(known()))}. "
            f"A package adds one by an entry point {name!r} of the group {group}"
        )
    may_run = {_normal(package) for package in allowed}
    trusted = [entry for entry in entries if _normal(_package(entry)) in may_run]
    if not trusted:
        package = _package(entries[0])
        raise ConfigError(
            f"{owner} comes with the package {package}, whose code this node does not run; if you trust it: "
            f"{FLAG} {package}"
        )
    if len(trusted) > 1:
        raise ConfigError(
            f"{owner} comes with several packages: {', '.join(map(_package, trusted))}; allow one of them"
        )
    try:
        trusted[0].load()
    except Exception as error:
        raise ConfigError(f"{owner}: the package {_package(trusted[0])} cannot be loaded: {error}") from error
    if name not in known():
        raise ConfigError(
            f"{owner}: loading {trusted[0].value} of the package {_package(trusted[0])} registers nothing of that name"
        )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"


def _normal(package: str) -> str:
    """Names that pip takes for the same."""
    return re.sub(r"[-_.]+", "-", package).lower()
