"""`lah demo`: a whole swarm on this machine, training a model while a browser watches.

Exit codes: 0 when the accuracy was reached, 1 when it was not or something failed, 2 for a wrong command line, 3 when a
package is not installed, 128 + the signal's number when a signal ended the training (130 after Ctrl-C).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from learning_at_home.demo.commands import MAX_NODES, Commands
from learning_at_home.demo.recipe import GOAL_ACCURACY, Recipe
from learning_at_home.demo.screen import Screen
from learning_at_home.demo.stage import DemoOptions, Stage
from learning_at_home.errors import LearningAtHomeError

DEFAULT_PORT = 8765  # also that of `lah coordinator`
EXIT_REACHED = 0
EXIT_FAILED = 1
EXIT_MISSING_PACKAGE = 3
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One module of every part that the demo starts: what is missing is told before anything is started.
NEEDED_MODULES = ("torch", "sklearn", "fastapi", "sqlalchemy", "uvicorn", "psutil")


def main(argv: list[str]) -> int:
    """The exit code of the demo."""
    options = _parser().parse_args(argv)
    missing = [name for name in NEEDED_MODULES if find_spec(name) is None]
    if missing:
        print(
            f"lah demo needs {', '.join(missing)}, not installed here: pip install 'learning-at-home[demo]'",
            file=sys.stderr,
        )
        return EXIT_MISSING_PACKAGE
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    screen = Screen(sys.stdout, sys.stderr, headless=options.headless)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    demo = DemoOptions(Commands(recipe, options.nodes), options.port, options.frozen_experts, options.exit)
    folder = Path(tempfile.mkdtemp(prefix="lah-demo-"))
    stage = Stage(demo, folder, screen)
    keep_logs = False
    try:
        code = asyncio.run(_perform(stage, screen))
        keep_logs = code == EXIT_FAILED and stage.result is None
    finally:
        if keep_logs:
            screen.news(f"The logs of all processes are kept in {folder / 'logs'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


async def _perform(stage: Stage, screen: Screen) -> int:
    """Run the stage until it ends or a signal ends it. A second signal stops the waiting for processes to leave."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def leave(number: signal.Signals) -> None:
        if not caught:
            screen.news("Stopping every process (Ctrl-C again: without waiting for them) ...")
        caught.append(number)
        task.cancel()

    heeded = [number for number in STOPPING_SIGNALS if number != signal.SIGHUP or not _runs_under_nohup()]
    for number in heeded:
        loop.add_signal_handler(number, leave, number)
    try:
        await stage.run()
    except LearningAtHomeError as error:
        screen.news(str(error))
        return EXIT_FAILED
    except asyncio.CancelledError:
        if not caught:
            raise
        if stage.result is None:
            return 128 + caught[0]
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)
    reached = stage.result is not None and stage.result.accuracy >= GOAL_ACCURACY
    return EXIT_REACHED if reached else EXIT_FAILED


def _runs_under_nohup() -> bool:
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _parser() -> argparse.ArgumentParser:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="lah demo",
        description="Train a small model on a swarm of this machine: a coordinator, nodes and a trainer, each in a "
        "process of its own. Prints the address of a page that shows it live, and keeps it up until Ctrl-C.",
        epilog=f"Exit code 0 when {GOAL_ACCURACY:.2f} of the test rows were read right, 1 when not.",
    )
    parser.add_argument("--headless", action="store_true", help="no progress bar; the result is one line of JSON")
    parser.add_argument("--exit", action="store_true", help="stop everything when the training has ended")
    parser.add_argument("--frozen-experts", action="store_true", help="experts never learn: what the rest can do alone")
    parser.add_argument("--steps", type=_positive, default=defaults.steps, help="of training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of rows and weights (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=_port,
        default=DEFAULT_PORT,
        help="of the page; another one if it is taken (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes", type=_num_nodes, default=4, help=f"that share the experts, 1 to {MAX_NODES} (default: %(default)s)"
    )
    return parser


def _positive(text: str) -> int:
    return _whole_number(text, 1, 1_000_000)


def _port(text: str) -> int:
    return _whole_number(text, 0, 65_535)


def _num_nodes(text: str) -> int:
    return _whole_number(text, 1, MAX_NODES)


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{number} is not between {least} and {most}")
    return number
