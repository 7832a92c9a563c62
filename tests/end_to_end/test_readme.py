"""The README's example is the example file, to the letter; test_demo.py runs that file on a demo's swarm."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_digits.py"


def test_the_readme_prints_the_example_to_the_letter() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block == EXAMPLE.read_text("utf-8")
