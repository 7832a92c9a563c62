"""`lah expert check`: flags in, a line per finding (or JSON) and an exit code out."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from learning_at_home.tools.checks import check_lines
from node_agent.conformance.kit import examine, passes
from node_agent.conformance.subject import PROJECT, Subject, find_architecture_name
from node_agent.devices import find_device

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 4
EPILOG = """\
It imports and runs the code that it checks: check only what you trust. Modules are found in the current folder, too.

  lah expert check my_experts:Gated --hidden-size 256
  lah expert check transformer --sequence-length 32

exit codes:
  0  nothing failed; there may be warnings
  1  a node could not host it as it is
  2  the command line makes no sense
  4  there is no such network, or no such layer
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, as in --help."""
    flags = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.CRITICAL)  # what is wrong is told by the findings
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it: the code may not be installed yet
    with contextlib.redirect_stdout(sys.stderr):  # what the checked code prints is no finding
        try:
            subject = read_subject(flags)
        except ConfigError as error:
            print(f"lah expert: {error.message}", file=sys.stderr)
            return EXIT_CONFIGURATION
        findings = examine(subject)
    passed = passes(findings)
    if flags.json:
        layer = msgspec.to_builtins(subject.layer)
        told = {"ok": passed, "expert": flags.expert, "layer": layer, "checks": [asdict(each) for each in findings]}
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(check_lines(findings)))
    return EXIT_OK if passed else EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lah expert", description="Experts of your own: docs/custom-experts.md.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="try whether a node can host a network",
        description="Try whether a node can host a network, and say what to change.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("expert", metavar="MODULE:CLASS", help="what makes it from a LayerSpec; or a registered name")
    check.add_argument("--hidden-size", type=int, default=64, metavar="N", help="features of a row (64)")
    check.add_argument("--sequence-length", type=int, metavar="N", help="of rows that are sequences")
    check.add_argument(
        "--schema",
        metavar="TEXT",
        help="as in the project record, for several tensors: '(float[8], mask=bool[8]) -> float[8]'",
    )
    check.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(float32)")
    check.add_argument("--device", default="cpu", help="auto, cpu, cuda:0 ... (cpu)")
    check.add_argument("--json", action="store_true", help="for machines")
    return parser


def read_subject(flags: argparse.Namespace) -> Subject:
    """What is to be checked. Raises ConfigError."""
    layer = LayerSpec(
        prefix="checked",
        grid=(2,),
        architecture=find_architecture_name(flags.expert),
        hidden_size=flags.hidden_size,
        sequence_length=flags.sequence_length,
        schema=flags.schema,
        dtype=flags.dtype,
        optimizer=OptimizerSpec(name="sgd", learning_rate=0.1, clip_norm=0.5),
    )
    ProjectRecord(id=PROJECT, layers=(layer,)).check()
    return Subject(layer, find_device(flags.device))


if __name__ == "__main__":
    sys.exit(main())
