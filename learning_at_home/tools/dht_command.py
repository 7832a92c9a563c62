"""`lah dht`: flags in, words or JSON and an exit code out. What is run or looked up stands in files of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from learning_at_home.clock import SystemClock
from learning_at_home.data_folders import data_folder
from learning_at_home.dht.contacts import parse_address
from learning_at_home.dht.node import KnownPeer
from learning_at_home.directory.publisher import fetch_project
from learning_at_home.errors import (
    BootstrapFailed,
    ConfigError,
    CoordinatorUnreachable,
    LearningAtHomeError,
)
from learning_at_home.text import printable
from learning_at_home.tools.dht_look_up import (
    FoundExperts,
    HeldKey,
    find_experts,
    find_key,
    parse_key,
    parse_start,
)
from learning_at_home.tools.dht_run import RunOptions, run_peer
from learning_at_home.tools.plain_text import aligned, counted, duration, size
from learning_at_home.tools.way_in import find_way, visit

DEFAULT_PORT = 8338
REPORT_EVERY_S = 60.0
TIMEOUT_S = 10.0
Act = Callable[[argparse.Namespace], Coroutine[Any, Any, int]]

LOG_LEVELS = ("debug", "info", "warning", "error")

EXIT_OK = 0
EXIT_NOBODY_HOLDS_IT = 1
EXIT_CONFIGURATION = 4  # this and what follows as of `lah node`; 2 is argparse's
EXIT_NOBODY_ANSWERED = 5
EXIT_ADDRESS_TAKEN = 6

EPILOG = """\
exit codes:
  0  done
  1  nobody holds what was looked up
  2  the command line makes no sense
  4  the configuration cannot be used: a flag, the project, the data folder
  5  nobody answered: neither a bootstrap peer nor the coordinator
  6  the port is taken
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, as in --help."""
    flags = build_parser().parse_args(argv)
    logging.basicConfig(level=flags.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for library in ("httpx", "rpcudp", "kademlia"):  # they log an expected absence as an event of note
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        for address in flags.bootstrap:
            parse_address(address)
        act: Act = flags.act
        return asyncio.run(act(flags))
    except (BootstrapFailed, CoordinatorUnreachable) as error:
        return _end(EXIT_NOBODY_ANSWERED, error)
    except ConfigError as error:
        return _end(EXIT_ADDRESS_TAKEN if "cannot listen" in str(error) else EXIT_CONFIGURATION, error)
    except LearningAtHomeError as error:
        return _end(EXIT_CONFIGURATION, error)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lah dht",
        description="Run a bootstrap peer of the DHT, look something up in it, see who is there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run a peer that others bootstrap from")
    run.set_defaults(act=_run)
    run.add_argument("--host", default="0.0.0.0", help="address to listen on (0.0.0.0)")  # noqa: S104 - to be reached
    run.add_argument("--port", type=_port, default=DEFAULT_PORT, help=f"UDP port ({DEFAULT_PORT}; 0: any free one)")
    run.add_argument("--announce-host", metavar="HOST", help="under which others reach it; only printed")
    run.add_argument("--data-dir", type=_folder, metavar="DIR", help="where its key is kept; one peer per folder")
    run.add_argument("--report-every", type=_seconds, metavar="SECONDS", default=REPORT_EVERY_S, help="a line (60)")
    run.add_argument("--exit-with-parent", action="store_true", help="leave when standard input is closed")
    get = commands.add_parser("get", help="look a key or an expert up")
    get.set_defaults(act=_get)
    get.add_argument("what", metavar="KEY_OR_UID", help="40 hexadecimal digits, or a uid or its start: ffn0.3.17, ffn0")
    get.add_argument("--project", metavar="ID", help="that a uid belongs to")
    peers = commands.add_parser("peers", help="the table of neighbours of a peer that just came")
    peers.set_defaults(act=_peers)
    for command in (get, peers):
        command.add_argument("--coordinator", metavar="URL", help="that tells bootstrap peers and the project")
        command.add_argument(
            "--timeout", type=_seconds, metavar="SECONDS", default=TIMEOUT_S, help="for an answer (10)"
        )
        command.add_argument("--json", action="store_true", help="for machines")
    for command in (run, get, peers):
        command.add_argument("--bootstrap", action="append", default=[], metavar="HOST:PORT", help="a peer; repeatable")
        command.add_argument("--log-level", choices=LOG_LEVELS, default="warning", help="of standard error (warning)")
    return parser


async def _run(flags: argparse.Namespace) -> int:
    options = RunOptions(
        folder=flags.data_dir or data_folder() / "dht",
        host=flags.host,
        port=flags.port,
        bootstrap=tuple(flags.bootstrap),
        announce_host=flags.announce_host,
        report_every_s=flags.report_every,
        exit_with_parent=flags.exit_with_parent,
    )
    await run_peer(options, partial(print, flush=True))
    return EXIT_OK


async def _get(flags: argparse.Namespace) -> int:
    key, clock = parse_key(flags.what), SystemClock()
    if key is None:
        parse_start(flags.what)
        if flags.project is None and flags.coordinator is None:
            raise ConfigError("a uid belongs to a project: name it by --project ID, or give --coordinator URL")
    way = await find_way(flags.coordinator, flags.bootstrap, clock, flags.timeout)
    async with visit(way.bootstrap, clock, flags.timeout) as dht:
        if key is not None:
            held = await find_key(dht, key, clock)
            _show(flags.json, asdict(held), key_lines(held))
            return _code(held.num_answered, bool(held.records))
        record = way.project
        if record is None or flags.project not in (None, record.id):
            record, _ = await fetch_project(dht, flags.project)
        found = await find_experts(dht, record, flags.what, clock)
    _show(flags.json, asdict(found), expert_lines(found))
    return _code(found.num_answered, bool(found.nodes))


async def _peers(flags: argparse.Namespace) -> int:
    clock = SystemClock()
    way = await find_way(flags.coordinator, flags.bootstrap, clock, flags.timeout)
    async with visit(way.bootstrap, clock, flags.timeout) as dht:
        known = dht.neighbours()
    _show(flags.json, [asdict(peer) | {"node_id": peer.node_id.hex()} for peer in known], peer_lines(known))
    return EXIT_OK


def key_lines(held: HeldKey) -> list[str]:
    """What `lah dht get KEY` prints."""
    if not held.records:
        return [_absent(f"the key {held.key}", held.num_answered), _asked(held.num_answered, held.seconds)]
    heads = ("publisher", "sequence", "age", "expires in", "size", "")
    rows = [
        (
            each.publisher,
            str(each.sequence),
            duration(each.age_s),
            duration(each.expires_in_s),
            size(each.size_bytes),
            "withdrawn" if each.withdrawn else "",
        )
        for each in held.records
    ]
    return [*aligned(heads, rows), _asked(held.num_answered, held.seconds)]


def expert_lines(found: FoundExperts) -> list[str]:
    """What `lah dht get UID` prints."""
    if not found.nodes:
        words = _absent(f"{found.uid} of project {found.project}", found.num_answered)
        return [words, _asked(found.num_answered, found.seconds)]
    heads = ("node", "state", "endpoints", "serves", "id", "announced", "expires in", "size", "sequence")
    rows = [
        (
            each.name,
            each.state,
            ", ".join(each.endpoints),
            f"{each.holds} of {len(each.cells)}" if len(each.cells) > 1 else ("yes" if each.holds else "no"),
            each.node_id[:12],
            f"{duration(each.age_s)} ago",
            duration(each.expires_in_s),
            size(each.size_bytes),
            str(each.sequence),
        )
        for each in found.nodes
    ]
    served = (
        f"{found.num_served} of {found.num_cells} are served"
        if found.num_cells > 1
        else ("is served" if found.num_served else "is announced, but nobody serves it now")
    )
    return [
        f"{found.uid} of project {found.project}: {served}",
        *aligned(heads, rows),
        _asked(found.num_answered, found.seconds),
    ]


def peer_lines(known: Sequence[KnownPeer]) -> list[str]:
    """What `lah dht peers` prints."""
    heads = ("id", "address", "bucket", "distance", "round trip", "answered", "")
    rows = [
        (
            peer.node_id.hex(),
            peer.address,
            str(peer.bucket),
            f"2^{peer.distance_bits - 1}",
            "not known" if peer.round_trip_s is None else f"{peer.round_trip_s * 1000:.1f} ms",
            "not known" if peer.answered_ago_s is None else f"{duration(peer.answered_ago_s)} ago",
            "silent" if peer.is_silent else "",
        )
        for peer in known
    ]
    num_silent = sum(peer.is_silent for peer in known)
    return [*aligned(heads, rows), f"{counted(len(known), 'peer')}, {num_silent} of them silent"]


def _absent(what: str, num_answered: int) -> str:
    if not num_answered:
        return f"nobody answered: whether {what} is held anywhere is not known"
    return f"nobody holds {what}"


def _asked(num_answered: int, seconds: float) -> str:
    return f"{counted(num_answered, 'peer')} answered in {duration(seconds)}"


def _code(num_answered: int, found: bool) -> int:
    return EXIT_OK if found else (EXIT_NOBODY_HOLDS_IT if num_answered else EXIT_NOBODY_ANSWERED)


def _show(as_json: bool, value: Any, lines: Sequence[str]) -> None:
    print(json.dumps(value, indent=2) if as_json else "\n".join(lines))


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no port: 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds above 0")
    return seconds


def _end(code: int, error: Exception) -> int:
    print(f"lah dht: {printable(str(error), 1_000)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
