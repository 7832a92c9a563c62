"""A project record as the TOML that `--project-file` takes. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from learning_at_home.project import ProjectRecord


def project_toml(project: ProjectRecord) -> str:
    """`ProjectRecord.from_toml` of it is the same record."""
    return "\n".join(_table(msgspec.to_builtins(project), ())) + "\n"


def _table(values: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first: in TOML they would otherwise belong to the table before them."""
    lines = [
        f"{key} = {_scalar(value)}" for key, value in values.items() if not _is_nested(value) and value is not None
    ]
    for key, value in values.items():
        name = ".".join((*path, key))
        if isinstance(value, dict):
            lines += [f"[{name}]", *_table(value, (*path, key))]
        elif _is_nested(value):
            for entry in value:
                lines += [f"[[{name}]]", *_table(entry, (*path, key))]
    return lines


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict))


def _scalar(value: object) -> str:
    return json.dumps(value)  # numbers, strings, booleans and lists of them are written alike
