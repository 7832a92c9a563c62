"""The flags of `lah coordinator`, their environment variables, and the settings that follow from both. Plain code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from backend.settings import DEFAULT_HOST, DEFAULT_PORT, Settings
from learning_at_home.data_folders import data_folder
from learning_at_home.errors import ConfigError
from learning_at_home.project import BUILT_IN_OPTIMIZERS, LayerSpec, OptimizerSpec, ProjectRecord

VARIABLE = "LAH_COORDINATOR_"
DEFAULT_LAYERS = ("ffn0=4x4:ffn:64", "ffn1=4x4:ffn:64")
_LAYER = re.compile(r"(?P<prefix>[^=]+)=(?P<grid>\d+(?:x\d+)*):(?P<architecture>[^:]+):(?P<hidden_size>\d+)")
LogLevel = Literal["debug", "info", "warning", "error"]
REPEATABLE = ("bootstrap", "layer", "project_file")


@dataclass(frozen=True, slots=True)
class Start:
    """What a command line asks for: the settings, and how the process behaves."""

    settings: Settings
    log_level: str
    exit_with_parent: bool


def parser() -> argparse.ArgumentParser:
    """Every flag. Defaults are None, so that the environment can be asked for what is absent."""
    made = argparse.ArgumentParser(
        prog="lah coordinator",
        description="Serve projects: their records, their health, their pages.",
        epilog=f"Every flag has an environment variable, {VARIABLE}PORT for --port; repeated values are separated by "
        "spaces there. A flag goes before its variable.",
    )
    add = made.add_argument
    add("--host", help=f"address to listen on (default {DEFAULT_HOST}: this machine only)")
    add("--port", help=f"TCP port of the web server (default {DEFAULT_PORT}; 0: any)")
    add("--dht-port", help="UDP port of the DHT peer (default: the number of --port; 0: any)")
    add("--data-dir", help="folder of the database and the key (default: the user's data folder)")
    add("--database-url", help="postgresql+asyncpg://... instead of SQLite in the data folder")
    add("--public-url", help="address under which people reach the pages (default http://HOST:PORT)")
    add("--bootstrap", action="append", metavar="HOST:PORT", help="another DHT peer to join; repeatable")
    add("--project", metavar="ID", help="make a project of this id unless it exists")
    add("--title", help="its title")
    add(
        "--layer",
        action="append",
        metavar="PREFIX=GRID:ARCHITECTURE:FEATURES",
        help=f"its layers; repeatable (default: {' and '.join(DEFAULT_LAYERS)})",
    )
    add("--optimizer", help=f"of its experts: {', '.join(BUILT_IN_OPTIMIZERS)} (default adam)")
    add("--learning-rate", help="of its experts")
    add("--project-file", action="append", metavar="FILE.toml", help="make or update a project; repeatable")
    add("--log-level", choices=get_args(LogLevel), help="default: warning")
    add("--exit-with-parent", action="store_true", default=None, help="stop when standard input closes")
    return made


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Start:
    """What is asked for. Raises ConfigError; argparse itself ends the process for a flag that does not exist."""
    flags = vars(parser().parse_args(arguments))
    values = {name: value if value is not None else _from(environment, name) for name, value in flags.items()}
    unknown = [
        name for name in environment if name.startswith(VARIABLE) and name.removeprefix(VARIABLE).lower() not in flags
    ]
    if unknown:
        raise ConfigError(f"{unknown[0]} is no setting of the coordinator; `lah coordinator --help` lists them")
    level = _text(values["log_level"]) or "warning"
    if level not in get_args(LogLevel):
        raise ConfigError(f"--log-level {level!r} is none of {', '.join(get_args(LogLevel))}")
    port = _whole("--port", values["port"], DEFAULT_PORT)
    settings = Settings(
        data_dir=Path(_text(values["data_dir"])).absolute() if values["data_dir"] else data_folder() / "coordinator",
        host=_text(values["host"]) or DEFAULT_HOST,
        port=port,
        dht_port=_whole("--dht-port", values["dht_port"], port),
        database_url=_text(values["database_url"]),
        public_url=_text(values["public_url"]),
        bootstrap=tuple(values["bootstrap"] or ()),
        from_flags=_project(values),
        from_files=tuple(ProjectRecord.from_toml(Path(path)) for path in values["project_file"] or ()),
    )
    exit_with_parent = values["exit_with_parent"] in (True, "1", "true", "yes")
    return Start(settings, level, exit_with_parent)


def parse_layer(text: str, optimizer: OptimizerSpec) -> LayerSpec:
    """`ffn0=4x4:ffn:64` as a layer. Raises ConfigError with the form."""
    match = _LAYER.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--layer {text[:80]!r} is not of the form ffn0=4x4:ffn:64 (prefix, grid, architecture, features)"
        )
    return LayerSpec(
        prefix=match["prefix"],
        grid=tuple(int(size) for size in match["grid"].split("x")),
        architecture=match["architecture"],
        hidden_size=int(match["hidden_size"]),
        optimizer=optimizer,
    )


def _project(values: Mapping[str, object]) -> tuple[ProjectRecord, ...]:
    about = [name for name in ("title", "layer", "optimizer", "learning_rate") if values[name] is not None]
    if values["project"] is None:
        if about:
            raise ConfigError(f"--{about[0].replace('_', '-')} says something of a project: give its id with --project")
        return ()
    given = {name: values[name] for name in ("optimizer", "learning_rate") if values[name] is not None}
    optimizer = OptimizerSpec()
    if given:
        wanted: dict[str, object] = {}
        if "optimizer" in given:
            if given["optimizer"] not in BUILT_IN_OPTIMIZERS:
                raise ConfigError(
                    f"--optimizer {str(given['optimizer'])[:64]!r} is none of {', '.join(BUILT_IN_OPTIMIZERS)}; "
                    "those of packages are named in a --project-file"
                )
            wanted["name"] = given["optimizer"]
        if "learning_rate" in given:
            wanted["learning_rate"] = _number("--learning-rate", given["learning_rate"])
        optimizer = _optimizer(wanted)
    layers = values["layer"] or DEFAULT_LAYERS
    assert isinstance(layers, (list, tuple))
    record = ProjectRecord(
        id=str(values["project"]),
        title=str(values["title"] or ""),
        layers=tuple(parse_layer(str(text), optimizer) for text in layers),
    )
    return (record.check(),)


def _optimizer(values: dict[str, object]) -> OptimizerSpec:
    record = ProjectRecord.from_builtins(
        {"id": "flags", "layers": [{"prefix": "flags", "grid": [1], "optimizer": values}]}
    )
    return record.layers[0].optimizer


def _from(environment: Mapping[str, str], name: str) -> str | list[str] | None:
    value = environment.get(VARIABLE + name.upper())
    if not value:
        return None
    return value.split() if name in REPEATABLE else value


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _whole(flag: str, value: object, default: int) -> int:
    if value is None:
        return default
    try:
        return int(str(value))
    except ValueError as error:
        raise ConfigError(f"{flag} {value!r} is not a whole number") from error


def _number(flag: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise ConfigError(f"{flag} {value!r} is not a number") from error
