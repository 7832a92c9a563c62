"""The `lah` command: it finds a subcommand by its entry point and hands it the remaining arguments.

Knows no subcommand: each is an entry of the group `learning_at_home.commands`, a callable `main(argv) -> exit code`,
so that a machine pays only for what it runs and another package can add its own. A command's name is also the name of
the extra that brings its modules, where there is one.

Exit codes: those of the subcommand; 2 for a command line that makes no sense, 3 when the extra is not installed,
130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from learning_at_home.process_exit import end_quickly
from learning_at_home.version import __version__

DISTRIBUTION = "learning-at-home"
COMMANDS_GROUP = "learning_at_home.commands"
OUR_PACKAGES = frozenset({"learning_at_home", "node_agent", "backend", "dashboard"})
SUMMARIES = {
    "coordinator": "serve projects: their records, their health, their pages",
    "demo": "train a model on a swarm of this machine, and watch it in a browser",
    "dht": "run a bootstrap peer of the DHT, look something up in it, see who is there",
    "doctor": "check this machine, its network and its clock, and say what to do",
    "expert": "try whether a node can host a network of your own",
    "node": "host experts on this machine",
}

EXTRAS = {"expert": "node"}  # of commands that are not named like theirs

EXIT_USAGE = 2  # what argparse uses
EXIT_MISSING_EXTRA = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

CommandMain = Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the subcommand that `argv` names; Ctrl-C ends it quietly, also while it is loaded."""
    end_quickly()
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {entry.name: entry for entry in entry_points(group=COMMANDS_GROUP)}
    if arguments and arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    if arguments and not arguments[0].startswith("-"):
        return _run(commands, arguments[0], arguments[1:])
    parser = _parser(commands)
    parser.parse_args(arguments)  # --help and --version leave from here
    parser.print_help(sys.stderr)
    return EXIT_USAGE


def _run(commands: dict[str, EntryPoint], name: str, arguments: list[str]) -> int:
    entry = commands.get(name)
    if entry is None:
        known = ", ".join(sorted(commands)) or "none"
        print(f"lah: there is no command {name!r}; there are: {known}", file=sys.stderr)
        return EXIT_USAGE
    try:
        command: CommandMain = entry.load()
    except ModuleNotFoundError as error:
        if not _is_a_missing_package(error):
            raise
        print(
            f"lah {name} needs the Python package {error.name}, which is not installed: "
            f"pip install '{_requirement(entry)}'",
            file=sys.stderr,
        )
        return EXIT_MISSING_EXTRA
    return command(arguments)


def _is_a_missing_package(error: ModuleNotFoundError) -> bool:
    """Whether a third-party package is absent as a whole; all else is a fault that an extra would not mend."""
    top_level = (error.name or "").partition(".")[0]
    if not top_level or top_level in OUR_PACKAGES or top_level in sys.stdlib_module_names:
        return False
    return find_spec(top_level) is None


def _requirement(entry: EntryPoint) -> str:
    """What to install for an entry: its distribution, with the extra that it needs where there is one."""
    if entry.dist is None:
        return DISTRIBUTION
    extras = entry.dist.metadata.get_all("Provides-Extra") or []
    name: str = entry.dist.metadata["Name"]
    extra = EXTRAS.get(entry.name, entry.name) if name == DISTRIBUTION else entry.name
    return f"{name}[{extra}]" if extra in extras else name


def _parser(commands: dict[str, EntryPoint]) -> argparse.ArgumentParser:
    width = max((len(name) for name in commands), default=0)
    lines = [f"  {name:<{width}}  {_summary(entry)}".rstrip() for name, entry in sorted(commands.items())]
    parser = argparse.ArgumentParser(
        prog="lah",
        usage="lah COMMAND [ARGUMENTS]",
        description="Learning@home: train neural networks on computers that come and go.",
        epilog="\n".join(["commands:", *lines, "", "`lah help COMMAND` tells what a command takes."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _summary(entry: EntryPoint) -> str:
    if entry.name in SUMMARIES and entry.dist is not None and entry.dist.metadata["Name"] == DISTRIBUTION:
        return SUMMARIES[entry.name]
    return f"(from {entry.dist.metadata['Name']})" if entry.dist is not None else ""


if __name__ == "__main__":
    sys.exit(main())
