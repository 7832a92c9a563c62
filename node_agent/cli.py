"""`lah node`: flags in, an exit code out. Sets up logging and signals; all else is the agent's."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence

from learning_at_home.errors import (
    BootstrapFailed,
    ConfigError,
    CoordinatorUnreachable,
    LearningAtHomeError,
)
from learning_at_home.parent_watch import exit_when_stdin_closes, terminate_this_process
from learning_at_home.tensors.freed_memory import keep_freed_memory
from learning_at_home.tensors.huge_pages import use_huge_pages
from node_agent.agent import Agent, NodeFailed, told
from node_agent.config import DEFAULT_MAX_EXPERTS, ENVIRONMENT_PREFIX, LOG_LEVELS, NodeConfig, read_config
from node_agent.tensorboard import MissingExtra, require_tensorboard

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_MISSING_EXTRA = 3
EXIT_CONFIGURATION = 4
EXIT_UNREACHABLE = 5
EXIT_ADDRESS_TAKEN = 6
EXIT_FAILED = 7

EPILOG = f"""\
Each flag may also be given as an environment variable: --max-experts as {ENVIRONMENT_PREFIX}MAX_EXPERTS; flags win.
Ctrl-C leaves cleanly: nothing new is taken, what is queued is finished, the announcement is withdrawn. A second one
does not wait.

exit codes:
  0  left cleanly
  2  the command line makes no sense
  3  a flag needs a package that is not installed
  4  the configuration cannot be used: a flag, the project, the data folder, or too little memory
  5  neither the coordinator nor a bootstrap peer could be reached
  6  a port is taken
  7  the node failed while it served: the device or the network thread ended
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, as in --help."""
    flags = build_parser().parse_args(argv)
    try:
        config = read_config(vars(flags), os.environ)
        set_up_logging(config.log_level)
        keep_freed_memory()
        gc.freeze()  # what is loaded: a collection that looks through all of torch takes 76 ms of an answer's time
        use_huge_pages()
        if config.tensorboard is not None:
            require_tensorboard()
        return asyncio.run(run_until_told(config))
    except MissingExtra as error:
        return _end(EXIT_MISSING_EXTRA, error)
    except (CoordinatorUnreachable, BootstrapFailed) as error:
        return _end(EXIT_UNREACHABLE, error)
    except ConfigError as error:
        return _end(EXIT_ADDRESS_TAKEN if "cannot listen" in str(error) else EXIT_CONFIGURATION, error)
    except LearningAtHomeError as error:
        return _end(EXIT_CONFIGURATION, error)
    except NodeFailed as error:
        log.error("the cause", exc_info=error.__cause__)
        return _end(EXIT_FAILED, error)


async def run_until_told(config: NodeConfig) -> int:
    """Run a node until SIGINT, SIGTERM or the end of the parent."""
    agent = Agent(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, agent.stop)
    if config.exit_with_parent:
        exit_when_stdin_closes(terminate_this_process)
    await agent.run()
    return EXIT_OK


def build_parser() -> argparse.ArgumentParser:
    """The flags; their defaults stand in NodeConfig."""
    parser = argparse.ArgumentParser(
        prog="lah node",
        description="Host experts of a Learning@home project on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("which project")
    where.add_argument("--coordinator", metavar="URL", help="the project's page, https://host/p/digits, or its root")
    where.add_argument("--bootstrap", action="append", metavar="HOST:PORT", help="a DHT peer; may be repeated")
    where.add_argument("--project", metavar="ID", help="the project, when the address does not name it")
    where.add_argument("--project-file", metavar="TOML", help="the project record, for swarms without a coordinator")
    where.add_argument("--join-timeout", metavar="SECONDS", help="how long to wait for the coordinator (60)")
    what = parser.add_argument_group("what to host")
    what.add_argument(
        "--experts",
        action="append",
        metavar="PATTERN",
        help="cells, as in 'ffn0.[0:4].[0:4]', end excluded; may be repeated; without it vacant cells are chosen",
    )
    what.add_argument("--max-experts", metavar="N", help=f"of vacant cells at most ({DEFAULT_MAX_EXPERTS})")
    what.add_argument(
        "--allow-experts",
        action="append",
        metavar="PACKAGE",
        help="run experts and optimizers of this installed package, too; may be repeated (only built-in ones)",
    )
    what.add_argument("--device", help="auto (the first GPU, else the CPU), cpu, cuda:0 ...")
    what.add_argument("--threads", metavar="N", help="CPU threads that compute (1)")
    what.add_argument("--grouping", help="several experts in one product: auto (where a GPU gains by it), on, off")
    what.add_argument("--max-rows", metavar="N", help="rows of one request at most (4096)")
    what.add_argument("--memory-limit", metavar="SIZE", help="for experts, as in 4GB (90 %% of what is free)")
    who = parser.add_argument_group("this node")
    who.add_argument("--name", help="how people see it (made from its key)")
    who.add_argument("--data-dir", metavar="DIR", help="where its key is kept; one node per folder")
    who.add_argument("--host", help="address to listen on (0.0.0.0)")
    who.add_argument("--announce-host", metavar="HOST", help="address under which others reach it (found by itself)")
    who.add_argument("--port", help="TCP port for expert calls (any free one)")
    who.add_argument(
        "--announce-port", metavar="PORT", help="TCP port under which others reach it, where a router maps one (--port)"
    )
    who.add_argument("--dht-port", metavar="PORT", help="UDP port for the DHT (any free one)")
    who.add_argument(
        "--unencrypted",
        action="store_true",
        help="expert calls without encryption or proof of keys; only for trusted machines in one rack",
    )
    who.add_argument("--tensorboard", metavar="DIR", help="write the node's health there, for TensorBoard")
    who.add_argument("--exit-with-parent", action="store_true", help="leave when standard input is closed")
    who.add_argument("--log-level", choices=LOG_LEVELS, help="of the log on standard error (warning)")
    return parser


def set_up_logging(level: str) -> None:
    """The log goes to standard error; what a person should read to standard output, plainly."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for library in ("httpx", "websockets", "rpcudp", "kademlia"):  # they log an expected absence as an event of note
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    told.handlers = [handler]
    told.setLevel(logging.INFO)
    told.propagate = False


def _end(code: int, error: Exception) -> int:
    print(f"lah node: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
