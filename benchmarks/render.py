"""`python -m benchmarks.render FILE...`: the figures that benchmarks wrote by --json, as tables for the docs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import markdown, read_json


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.render", description="Figures as Markdown.")
    flags.add_argument("files", type=Path, nargs="+", metavar="FILE", help="written by --json")
    for path in flags.parse_args(argv).files:
        document = json.loads(path.read_text("utf-8"))
        of = document["machine"]
        where = f"{of['cpu']}, {of['cores']} cores, Python {of['python']}, torch {of['torch']}, {of['device']}"
        print(f"`{document['benchmark']}`, {document['seconds']:.0f} s on {where}\n\n{markdown(read_json(path))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
