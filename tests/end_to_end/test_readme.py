"""The README's example is the example file, to the letter, and runs as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from learning_at_home.demo.recipe import project_record, project_toml
from tests.end_to_end.processes import Processes
from tests.end_to_end.test_training_survives import healths

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_digits.py"


def test_the_readme_prints_the_example_to_the_letter() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block == EXAMPLE.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_example_runs_as_printed(tmp_path: Path, free_tcp_port: int) -> None:
    project_file = tmp_path / "digits.toml"
    project_file.write_text(project_toml(project_record(frozen_experts=False)))
    with Processes(tmp_path) as processes:
        url = processes.coordinator(free_tcp_port, project_file)
        for half in (0, 1):
            lines = f"[{2 * half}:{2 * half + 2}].[0:4]"
            processes.node(f"node-{half}", url, [f"ffn0.{lines}", f"ffn1.{lines}"])
        processes.until(lambda: healths(url)["serving"] == 32, "all 32 experts are serving")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(EXAMPLE), url]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"test accuracy (\d\.\d+) after ([\d,]+) calls to experts\n", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 0.4  # a hundred steps; a model without experts ends at 0.40
