"""Learning@home: train neural networks too large for any one machine, on computers that come and go.

    import learning_at_home as lah

    with lah.Swarm.connect("https://coordinator.example/p/digits") as swarm:
        layer = lah.DMoE(swarm, layer="ffn0", k_best=4)

This is the only public import. It is lazy (PEP 562): importing the package loads neither torch nor a socket library;
a name loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from learning_at_home.client.dmoe import DMoE
    from learning_at_home.client.gating import Chosen, GatingFunction
    from learning_at_home.client.pipeline import Pipeline, Step
    from learning_at_home.client.remote_expert import RemoteExpert
    from learning_at_home.client.sinks import CsvSink, TensorBoardSink
    from learning_at_home.client.stats import SwarmStats
    from learning_at_home.client.swarm import Swarm
    from learning_at_home.client.switch_dmoe import SwitchDMoE
    from learning_at_home.errors import (
        AmbiguousProject,
        BatchTooLarge,
        BootstrapFailed,
        CallTimeout,
        ConfigError,
        CoordinatorUnreachable,
        DeadlinePassed,
        DirectoryError,
        EmptyBatch,
        ExpertFailed,
        GreetingRequired,
        InvalidUid,
        LearningAtHomeError,
        NetworkError,
        NodeDraining,
        NodeOverloaded,
        NonFiniteTensor,
        NotEnoughExperts,
        PeerError,
        PeerUnreachable,
        RecordRefused,
        SpecMismatch,
        StaleRequest,
        UnknownExpert,
        UnknownLayer,
        UnknownProject,
        UsageError,
        VersionMismatch,
        WireError,
    )
    from learning_at_home.expert_uid import ExpertUid
    from learning_at_home.identity import Identity
    from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord
    from learning_at_home.version import __version__

_MODULE_OF = {
    "Chosen": "client.gating",
    "CsvSink": "client.sinks",
    "DMoE": "client.dmoe",
    "ExpertUid": "expert_uid",
    "GatingFunction": "client.gating",
    "Identity": "identity",
    "LayerSpec": "project",
    "OptimizerSpec": "project",
    "Pipeline": "client.pipeline",
    "ProjectRecord": "project",
    "RemoteExpert": "client.remote_expert",
    "SharedParameters": "client.shared_group",
    "SharedStats": "client.shared_round",
    "Step": "client.pipeline",
    "Swarm": "client.swarm",
    "SwarmStats": "client.stats",
    "SwitchDMoE": "client.switch_dmoe",
    "TensorBoardSink": "client.sinks",
    "__version__": "version",
}

__all__ = [
    "AmbiguousProject",
    "BatchTooLarge",
    "BootstrapFailed",
    "CallTimeout",
    "Chosen",
    "ConfigError",
    "CoordinatorUnreachable",
    "CsvSink",
    "DMoE",
    "DeadlinePassed",
    "DirectoryError",
    "EmptyBatch",
    "ExpertFailed",
    "ExpertUid",
    "GatingFunction",
    "GreetingRequired",
    "Identity",
    "InvalidUid",
    "LayerSpec",
    "LearningAtHomeError",
    "NetworkError",
    "NodeDraining",
    "NodeOverloaded",
    "NonFiniteTensor",
    "NotEnoughExperts",
    "OptimizerSpec",
    "ParametersMissing",
    "PeerError",
    "PeerUnreachable",
    "Pipeline",
    "ProjectRecord",
    "RecordRefused",
    "RemoteExpert",
    "SharedParameters",
    "SharedStats",
    "SpecMismatch",
    "StaleRequest",
    "Step",
    "Swarm",
    "SwarmStats",
    "SwitchDMoE",
    "TensorBoardSink",
    "UnknownExpert",
    "UnknownLayer",
    "UnknownProject",
    "UsageError",
    "VersionMismatch",
    "WireError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "numpy"):
            raise
        message = f"learning_at_home.{name} needs {error.name}: pip install 'learning-at-home[trainer]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
