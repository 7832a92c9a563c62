"""What is loaded of installed packages, and what is said of those that are not."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from learning_at_home.errors import ConfigError
from learning_at_home.project import LayerSpec, OptimizerSpec
from node_agent.experts import extensions
from node_agent.experts.extensions import load_extensions


def entry(name: str, package: str, value: str = "no_such_module") -> EntryPoint:
    made = EntryPoint(name, value, "a group")
    vars(made).update(dist=SimpleNamespace(name=package))
    return made


@pytest.fixture
def entries(monkeypatch):
    """What packages declare, by group."""
    declared: dict[str, list[EntryPoint]] = {extensions.EXPERTS_GROUP: [], extensions.OPTIMIZERS_GROUP: []}
    monkeypatch.setattr(
        extensions, "entry_points", lambda *, group, name: [each for each in declared[group] if each.name == name]
    )
    return declared


def layer(architecture: str = "ffn", optimizer: str = "adam") -> LayerSpec:
    return LayerSpec(prefix="ffn0", grid=(2,), architecture=architecture, optimizer=OptimizerSpec(name=optimizer))


def test_built_in_ones_are_allowed_always_and_no_package_can_take_their_names(entries):
    entries[extensions.EXPERTS_GROUP].append(entry("ffn", "impostor"))

    load_extensions([layer()], [])
    load_extensions([layer()], ["impostor"])


@pytest.mark.parametrize(
    "declared,allowed,words",
    [
        (
            [],
            [],
            r"layer ffn0: architecture 'maxout' is not installed here; there are: ffn, mlp, nop, parameters, "
            r"transformer\. A ",
        ),
        ([("maxout", "bold-experts")], ["bold"], "comes with the package bold-experts.*--allow-experts bold-experts"),
        ([("maxout", "bold-experts")], ["bold_experts"], "bold-experts cannot be loaded: No module named"),
        ([("maxout", "bold"), ("maxout", "brave")], ["bold", "brave"], "several packages: bold, brave; allow one"),
        ([("maxout", "bold", "json")], ["bold"], "loading json of the package bold registers nothing of that name"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_the_layer_and_the_way_out(entries, declared, allowed, words):
    entries[extensions.EXPERTS_GROUP] += [entry(*each) for each in declared]

    with pytest.raises(ConfigError, match=words):
        load_extensions([layer("maxout")], allowed)


def test_an_optimizer_that_is_not_allowed_is_refused_like_an_expert(entries):
    entries[extensions.OPTIMIZERS_GROUP].append(entry("lion", "bold-experts"))

    with pytest.raises(ConfigError, match="layer ffn0: optimizer 'lion' comes with the package bold-experts"):
        load_extensions([layer(optimizer="lion")], [])


def test_an_optimizer_that_nobody_has_is_refused_by_its_name(entries):
    with pytest.raises(ConfigError, match="layer ffn0: optimizer 'lion' is not installed here; there are: adam, adamw"):
        load_extensions([layer(optimizer="lion")], ["bold-experts"])
