"""`lah doctor` and `lah dht get` on a healthy swarm of this machine, by their commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def lah(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "learning_at_home.cli", *arguments],
        env={**os.environ, "LEARNING_AT_HOME_DIR": str(folder), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_healthy_swarm_is_told_healthy_and_its_experts_are_found(tmp_path: Path, free_tcp_port: int):
    project_file = tmp_path / "project.toml"
    project_file.write_text(PROJECT, "utf-8")
    with Processes(tmp_path) as processes:
        url = processes.coordinator(free_tcp_port, project_file)
        processes.node("brisk-heron", url, ["ffn0.[0:2].[0:2]"])
        api = url.replace("/p/", "/api/v1/projects/")
        processes.until(lambda: httpx.get(api, timeout=5).json()["experts_serving"] == 4, "all experts serve")

        examined = lah(tmp_path, "doctor", "--coordinator", url, "--json")
        found = lah(tmp_path, "dht", "get", "ffn0.1.1", "--coordinator", url, "--json")

    result = json.loads(examined.stdout)
    checks = {check["name"]: check for check in result["checks"]}
    not_ok = {name: check for name, check in checks.items() if check["status"] != "ok" and name != "torch"}
    assert (examined.returncode, result["ok"], not_ok, examined.stderr) == (0, True, {}, "")
    assert checks["TCP reached"]["seen"].startswith("the coordinator reaches 127.0.0.1:")
    assert checks["UDP reached"]["seen"].startswith("the coordinator reaches 127.0.0.1:")
    (node,) = json.loads(found.stdout)["nodes"]
    assert (found.returncode, node["name"], node["state"], node["cells"]) == (0, "brisk-heron", "online", ["ffn0.1.1"])
