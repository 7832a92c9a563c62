"""A node hosts what it can of a project, and says what it leaves out."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learning_at_home.clock import SystemClock
from learning_at_home.directory.directory import Directory
from learning_at_home.errors import ConfigError
from learning_at_home.expert_uid import ExpertUid
from learning_at_home.identity import Identity
from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
from node_agent.config import NodeConfig
from node_agent.joining import choose_experts

PLAIN = LayerSpec(prefix="ffn0", grid=(2,), hidden_size=4)
FOREIGN = LayerSpec(prefix="odd0", grid=(2,), hidden_size=4, architecture="nobody-has-this")
UNMADE = LayerSpec(prefix="odd2", grid=(2,), hidden_size=4, architecture="transformer")  # it has no sequence_length
STEPPED = LayerSpec(prefix="odd1", grid=(2,), hidden_size=4, optimizer=OptimizerSpec(name="nobody-steps-so"))


class NoDht:
    """Finds nobody: every cell is vacant."""

    identity = Identity.generate()


async def chosen(layers: tuple[LayerSpec, ...], *experts: str) -> list[ExpertUid]:
    project = ProjectRecord(id="digits", layers=layers)
    config = NodeConfig(coordinator="https://c.example/p/digits", experts=experts).check()
    directory: Any = Directory(project, SystemClock())

    async def refresh(_: object) -> None:
        return None

    view = SimpleNamespace(layer=directory.layer, refresh=refresh)
    dht: Any = NoDht()
    return (await choose_experts(config, project, view, dht, torch.device("cpu")))[0]  # type: ignore[arg-type]


async def test_layers_that_cannot_run_here_are_left_out_with_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    uids = await chosen((FOREIGN, PLAIN, STEPPED, UNMADE))
    assert sorted(map(str, uids)) == ["ffn0.0", "ffn0.1"]
    told = [record.message for record in caplog.records if "hosts nothing" in record.message]
    assert len(told) == 3
    assert told[0].startswith("this node hosts nothing of layer odd0: architecture 'nobody-has-this' is not installed")
    assert told[1].startswith("this node hosts nothing of layer odd1: optimizer 'nobody-steps-so' is not installed")
    assert told[2].startswith("this node hosts nothing of layer odd2: a transformer's rows are sequences")


async def test_a_node_for_which_no_layer_is_left_does_not_join() -> None:
    with pytest.raises(ConfigError, match="layer odd0: architecture 'nobody-has-this' is not installed"):
        await chosen((FOREIGN, STEPPED))


async def test_a_layer_that_was_asked_for_is_not_left_out() -> None:
    with pytest.raises(ConfigError, match="layer odd0: architecture 'nobody-has-this' is not installed"):
        await chosen((FOREIGN, PLAIN), "ffn0.0", "odd0.1")
    assert [str(uid) for uid in await chosen((FOREIGN, PLAIN), "ffn0.0")] == ["ffn0.0"]
