"""The example of docs/custom-experts.md: built, unpacked as pip would, allowed, hosted and checked by its command."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
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
from node_agent.expert_command import main
from node_agent.experts import architectures, update_rules
from node_agent.experts.expert import Expert
from node_agent.experts.extensions import load_extensions
from node_agent.joining import choose_experts
from node_agent.runtime.computation import compute

ROOT = Path(__file__).resolve().parents[3]
LION = OptimizerSpec(name="lion", learning_rate=0.01, betas=(0.9, 0.99))
LAYER = LayerSpec(prefix="ffn0", grid=(2,), architecture="gated", hidden_size=8, optimizer=LION)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    source = ROOT / "examples" / "gated_experts"
    subprocess.run([*command, "--outdir", folder, source], check=True, capture_output=True, timeout=60)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package on the path of this process, and nothing of it afterwards."""
    registries = (architectures._registry, update_rules._registry)
    before = [dict(registry) for registry in registries]
    zipfile.ZipFile(wheel).extractall(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("gated_experts", None)
    for registry, content in zip(registries, before, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(content)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_installed_package_is_not_loaded_until_it_is_allowed_by_any_spelling_of_its_name(installed):
    with pytest.raises(ConfigError, match=r"layer ffn0: architecture 'gated' comes with the package gated-experts.*"):
        load_extensions([LAYER], ["others"])
    with pytest.raises(ConfigError, match=r"if you trust it: --allow-experts gated-experts$"):
        load_extensions([LAYER], [])
    assert "gated_experts" not in sys.modules

    load_extensions([LAYER], ["Gated_Experts"])

    expert = Expert.create(ExpertUid("ffn0", (0,)), LAYER, "digits", torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in expert.module.parameters()]
    outcomes = compute(expert, "backward", [(torch.randn(3, 8), torch.randn(3, 8))])
    assert isinstance(outcomes[0], torch.Tensor)
    moved = [(ours - theirs).detach().abs() for ours, theirs in zip(expert.module.parameters(), before, strict=True)]
    assert all(float(change.max()) == pytest.approx(0.01, rel=1e-3) for change in moved)  # a step of Lion's


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gated", "gated_experts:GatedWithDropout"])
def test_its_experts_pass_the_check(installed, target, capsys):
    assert main(["check", target, "--hidden-size", "8", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    statuses = {check["name"]: check["status"] for check in told["checks"]}
    assert told["ok"] is True
    assert set(statuses.values()) == {"ok"}
    is_random = target.endswith("Dropout")
    assert any("draws random numbers" in check["seen"] for check in told["checks"]) == is_random


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [(), ("gated-experts",)])
async def test_a_node_hosts_them_only_where_its_operator_allows_the_package(installed, allowed):
    project = ProjectRecord(id="digits", layers=(LAYER,))
    config = NodeConfig(project_file=Path("digits.toml"), experts=("ffn0.[0:2]",), allow_experts=allowed).check()
    dht: Any = SimpleNamespace(identity=Identity.generate())
    choosing = choose_experts(config, project, Directory(project, SystemClock()), dht, torch.device("cpu"))

    if allowed:
        uids, _ = await choosing
        assert list(map(str, uids)) == ["ffn0.0", "ffn0.1"]
    else:
        with pytest.raises(ConfigError, match="--allow-experts gated-experts"):
            await choosing
