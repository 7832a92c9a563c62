"""`lah doctor`: flags in, a line per check (or JSON) and an exit code out."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from learning_at_home.clock import SystemClock
from learning_at_home.coordinator_access import CoordinatorUrl
from learning_at_home.data_folders import data_folder
from learning_at_home.dht.contacts import parse_address
from learning_at_home.errors import ConfigError
from learning_at_home.tools.checks import check_lines
from learning_at_home.tools.doctor import Patient, examine, is_healthy

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EPILOG = """\
Give it what you give the node or the trainer: the coordinator, the bootstrap peers, the ports. It changes nothing.

exit codes:
  0  nothing failed; there may be warnings
  1  a check failed
  2  the command line makes no sense
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, as in --help."""
    parser = build_parser()
    flags = parser.parse_args(argv)
    logging.basicConfig(level=logging.CRITICAL)  # what is wrong is told by the checks
    try:
        patient = read_patient(flags)
    except ConfigError as error:
        parser.error(error.message)
    checks = asyncio.run(examine(patient, SystemClock()))
    healthy = is_healthy(checks)
    if flags.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print("\n".join(check_lines(checks)))
    return EXIT_OK if healthy else EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lah doctor",
        description="Check this machine, its network and its clock, and say what to do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--coordinator", metavar="URL", help="the project's page, https://host/p/digits, or its root")
    parser.add_argument("--bootstrap", action="append", default=[], metavar="HOST:PORT", help="a DHT peer; repeatable")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where keys are to be kept")
    parser.add_argument("--host", default="0.0.0.0", help="address that a node listens on (0.0.0.0)")  # noqa: S104
    parser.add_argument("--port", type=int, default=0, help="a node's TCP port for expert calls (any free one)")
    parser.add_argument(
        "--dht-port", type=int, default=0, metavar="PORT", help="its UDP port for the DHT (any free one)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def read_patient(flags: argparse.Namespace) -> Patient:
    """What is to be checked. Raises ConfigError for what makes no sense."""
    for address in flags.bootstrap:
        parse_address(address)
    for name, port in (("--port", flags.port), ("--dht-port", flags.dht_port)):
        if not 0 <= port <= 65_535:
            raise ConfigError(f"{name} {port} is no port: 0 to 65535")
    return Patient(
        folder=flags.data_dir.expanduser().absolute() if flags.data_dir else data_folder(),
        coordinator=CoordinatorUrl.parse(flags.coordinator) if flags.coordinator else None,
        bootstrap=tuple(dict.fromkeys(flags.bootstrap)),
        host=flags.host,
        port=flags.port,
        dht_port=flags.dht_port,
    )


if __name__ == "__main__":
    sys.exit(main())
