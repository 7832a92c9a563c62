"""What the tests of faults share: figures that are shown at the end of the run, hostile nodes, raw callers.

`LAH_FAULTS=full` runs the figures of the promise (a million frames of each kind, ten thousand connections) instead of
the quick round; `LAH_FUZZ_SEED=n` repeats a run of the fuzzer.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator

import pytest
import torch

from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec
from tests.faults.hostile_node import HostileNode
from tests.faults.process_node import ProcessSwarm
from tests.faults.raw_caller import RawCaller
from tests.learning_at_home.client.small_swarm import SmallSwarm

Figure = Callable[[str, object], None]

_figures: list[str] = []


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Figure:
    """`figure(name, value)`: into the report's properties, and under the run's summary."""

    def record(name: str, value: object) -> None:
        record_property(name, value)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        _figures.append(f"{request.node.name}: {name} = {shown}")

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("faults survived")
        for line in _figures:
            terminalreporter.line(line)


@pytest.fixture
def seed(figure: Figure) -> int:
    """Of the fuzzer: LAH_FUZZ_SEED, the same one always in CI, else a new one that a failure shows."""
    chosen = int(
        os.environ.get("LAH_FUZZ_SEED") or (1 if os.environ.get("CI") else random.SystemRandom().getrandbits(32))
    )
    figure("LAH_FUZZ_SEED", chosen)
    return chosen


@pytest.fixture
def small_swarm() -> Iterator[Callable[[LayerSpec], SmallSwarm]]:
    """Makes swarms without nodes."""
    with contextlib.ExitStack() as made:

        def make(spec: LayerSpec) -> SmallSwarm:
            swarm = SmallSwarm(spec)
            made.callback(swarm.close)
            return swarm

        yield make


@pytest.fixture
def hostile() -> Iterator[Callable[..., HostileNode]]:
    """Makes hostile nodes: `hostile(small_swarm, cells, script)` announces one with its own, valid key."""
    with contextlib.ExitStack() as made:

        def make(swarm: SmallSwarm, cells: list[int], script: Callable[..., object], **options: object) -> HostileNode:
            node = made.enter_context(HostileNode(Identity.generate(), script, **options))  # type: ignore[arg-type]
            swarm.announce(node.identity, node.port, cells)
            return node

        yield make


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[..., ProcessSwarm]]:
    """Makes swarms of nodes that are processes of their own: `processes(layer, num_nodes)`."""
    with contextlib.ExitStack() as made:

        def make(spec: LayerSpec, num_nodes: int = 1) -> ProcessSwarm:
            return made.enter_context(ProcessSwarm(spec, num_nodes))

        yield make


@pytest.fixture
def raw_caller() -> Iterator[Callable[..., RawCaller]]:
    """Makes callers that write their own bytes: `raw_caller(public_key, endpoint)`."""
    with contextlib.ExitStack() as made:

        def make(public_key: bytes, endpoint: str, **options: object) -> RawCaller:
            return made.enter_context(RawCaller(public_key, endpoint, **options))  # type: ignore[arg-type]

        yield make
