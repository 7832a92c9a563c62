"""A volunteer gives the coordinator's root address: the project is found in the real coordinator's own list."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.end_to_end.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROJECT = """
id = "digits"
[[layers]]
prefix = "ffn0"
grid = [2, 2]
hidden_size = 8
"""


def test_a_node_joins_the_only_project_by_the_root_address_and_leaves(tmp_path: Path, free_tcp_port: int):
    project_file = tmp_path / "project.toml"
    project_file.write_text(PROJECT, "utf-8")
    with Processes(tmp_path) as processes:
        url = processes.coordinator(free_tcp_port, project_file)
        root = url.removesuffix("/p/digits")
        processes.node("brisk-heron", root, [])
        processes.until(
            lambda: httpx.get(f"{root}/api/v1/projects/digits", timeout=5).json()["experts_serving"] == 4,
            "all four experts serve",
        )
        code = processes.stop("brisk-heron")
        told = processes.log("brisk-heron")

    assert code == 0
    assert "joined project digits" in told
    assert f"watch it at {url}" in told
    assert "left the swarm" in told
