"""What one node is told: flags first, then LAH_NODE_* variables, then defaults; checked here and nowhere else.

Pure but for the environment that it is given. Knows what a value may be; what it is for, its reader knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from learning_at_home.coordinator_access import CoordinatorUrl
from learning_at_home.errors import ConfigError, InvalidUid
from learning_at_home.expert_uid import UidPattern
from learning_at_home.project import MAX_ROWS_PER_REQUEST
from learning_at_home.readable_names import NAME_RULE, is_valid_name
from node_agent.experts.sizes import parse_size

GROUPINGS = ("auto", "on", "off")
ENVIRONMENT_PREFIX = "LAH_NODE_"
DEFAULT_MAX_EXPERTS = 16  # of vacant cells, when none are named: enough to matter, little enough for any machine
LOG_LEVELS = ("debug", "info", "warning", "error")
_BOOTSTRAP = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})")
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything that a person decides about a node. Names are those of the flags."""

    coordinator: str | None = None
    project: str | None = None
    project_file: Path | None = None
    bootstrap: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()  # patterns; none: vacant cells are chosen, up to max_experts
    max_experts: int = DEFAULT_MAX_EXPERTS
    allow_experts: tuple[str, ...] = ()  # packages whose experts and optimizers may run here; built-in ones always may
    device: str = "auto"
    name: str | None = None  # None: made from the key
    data_dir: Path | None = None  # None: the machine's folder for data
    host: str = "0.0.0.0"  # noqa: S104 - a node is there to be reached
    announce_host: str | None = None  # None: what the coordinator, or else the route to the others, tells
    port: int = 0
    announce_port: int | None = None  # None: the port itself
    dht_port: int = 0
    threads: int = 1
    max_rows: int = MAX_ROWS_PER_REQUEST
    memory_limit_bytes: int | None = None
    join_timeout_s: float = 60.0
    grouping: Literal["auto", "on", "off"] = (
        "auto"  # of experts into one product: auto (a GPU that gains by it), on, off
    )
    unencrypted: bool = False  # expert calls without CURVE and proof of keys: for trusted machines in one rack
    tensorboard: Path | None = None
    exit_with_parent: bool = False
    log_level: str = "warning"

    def check(self) -> NodeConfig:
        """The configuration itself. Raises ConfigError that names the flag and what would do."""
        if self.coordinator is not None:
            try:
                CoordinatorUrl.parse(self.coordinator)
            except ConfigError as error:
                raise ConfigError(f"--coordinator {error.message}") from error
            if self.project_file is not None:
                raise ConfigError("--project-file is for swarms without a coordinator; leave it or --coordinator out")
        elif self.project_file is None and not (self.project and self.bootstrap):
            raise ConfigError(
                "where is the project? Give --coordinator URL, or --project-file FILE, or --project ID with --bootstrap"
            )
        for address in self.bootstrap:
            match = _BOOTSTRAP.fullmatch(address)
            if match is None or not 1 <= int(match[2]) <= 65_535:
                raise ConfigError(f"--bootstrap {address[:80]!r} is not host:port, as in 203.0.113.7:8338")
        for pattern in self.experts:
            try:
                UidPattern.parse(pattern)
            except InvalidUid as error:
                raise ConfigError(f"--experts: {error.message}") from error
        if self.name is not None and not is_valid_name(self.name):
            raise ConfigError(f"--name {self.name[:40]!r}: a name has {NAME_RULE}")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"--device {self.device[:40]!r} is none of auto, cpu, cuda, cuda:0, cuda:1 ...")
        for package in self.allow_experts:
            if not _PACKAGE.fullmatch(package):
                raise ConfigError(f"--allow-experts {package[:80]!r} is no name of a package, as pip knows them")
        self._check_numbers()
        if self.grouping not in GROUPINGS:
            raise ConfigError(f"--grouping {self.grouping[:40]!r} is none of {', '.join(GROUPINGS)}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"--log-level {self.log_level[:40]!r} is none of {', '.join(LOG_LEVELS)}")
        return self

    def _check_numbers(self) -> None:
        bounds = {
            "--max-experts": (self.max_experts, 1, 8_192),
            "--port": (self.port, 0, 65_535),
            "--announce-port": (1 if self.announce_port is None else self.announce_port, 1, 65_535),
            "--dht-port": (self.dht_port, 0, 65_535),
            "--threads": (self.threads, 1, 1_024),
            "--max-rows": (self.max_rows, 1, MAX_ROWS_PER_REQUEST),
            "--join-timeout": (self.join_timeout_s, 0, 86_400),
        }
        for flag, (value, least, most) in bounds.items():
            if not least <= value <= most:
                raise ConfigError(f"{flag} {value} is out of range: {least} to {most:,}")


def read_config(flags: Mapping[str, object], environment: Mapping[str, str]) -> NodeConfig:
    """The checked configuration. `flags` has a value or None for each field. Raises ConfigError."""
    values: dict[str, object] = {}
    for field, read in _READERS.items():
        variable = ENVIRONMENT_PREFIX + field.upper()
        if flags.get(field) not in (None, [], False):
            values[field] = read(flags[field], "--" + field.replace("_", "-"))
        elif variable in environment:
            values[field] = read(environment[variable], variable)
    if "memory_limit" in values:
        values["memory_limit_bytes"] = values.pop("memory_limit")
    if "join_timeout" in values:
        values["join_timeout_s"] = values.pop("join_timeout")
    return NodeConfig(**values).check()  # type: ignore[arg-type]  # the readers below give each field its type


def _text(value: object, name: str) -> str:
    return str(value)


def _texts(value: object, name: str) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else tuple(str(value).replace(",", " ").split())


def _path(value: object, name: str) -> Path:
    return Path(str(value)).expanduser().absolute()


def _whole(value: object, name: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"{name} {str(value)[:40]!r} is not a whole number") from None


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"{name} {str(value)[:40]!r} is not a number") from None


def _size(value: object, name: str) -> int:
    return parse_size(str(value))


def _switch(value: object, name: str) -> bool:
    text = str(value).lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        raise ConfigError(f"{name} {text[:40]!r} is neither yes nor no")
    return text in ("1", "true", "yes", "on")


_READERS = {
    "coordinator": _text,
    "project": _text,
    "project_file": _path,
    "bootstrap": _texts,
    "experts": _texts,
    "max_experts": _whole,
    "allow_experts": _texts,
    "device": _text,
    "name": _text,
    "data_dir": _path,
    "host": _text,
    "announce_host": _text,
    "port": _whole,
    "announce_port": _whole,
    "dht_port": _whole,
    "threads": _whole,
    "max_rows": _whole,
    "memory_limit": _size,
    "join_timeout": _number,
    "grouping": _text,
    "unencrypted": _switch,
    "tensorboard": _path,
    "exit_with_parent": _switch,
    "log_level": _text,
}
