"""DMoE layers and a chain of single experts on nodes a long way off, trained by a pipeline. Run by benchmarks.sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.distant_training import DistantTraining, Load, Models, Way
from benchmarks.local_expert import LocalExpert, assert_close
from benchmarks.local_mixture import LocalMixture
from benchmarks.mixture_step import Step
from benchmarks.worker import Work, serve, settings_of
from learning_at_home.client.dmoe import DMoE
from learning_at_home.expert_uid import ExpertUid

CHAIN_BATCHES = 6  # one at a time; each takes two seconds at 100 ms
WAVES = 3  # batches in flight end at about one time: of a single wave two samples differed by a quarter


@dataclass(frozen=True, slots=True)
class Settings:
    architecture: str
    hidden_size: int
    num_layers: int
    grid: list[int]
    k_best: int
    num_nodes: int
    grace_s: float
    deadline_s: float
    seed: int


class OurDistance:
    """Work's names are the models, `dmoe` and `chain`; the answer is answered rows per second."""

    def __init__(self, settings: Settings) -> None:
        models = Models(
            architecture=settings.architecture,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            grid=tuple(settings.grid),
            k_best=settings.k_best,
            num_nodes=settings.num_nodes,
            grace_s=settings.grace_s,
            deadline_s=settings.deadline_s,
        )
        self._seed = settings.seed
        self._num_runs = 0
        self._training = DistantTraining(models, settings.seed).__enter__()

    def check(self) -> None:
        """The first layer and the first stage, output and gradients, before any expert has stepped."""
        training = self._training
        models, project = training.models, training.project
        layer = DMoE(training.swarm, "dmoe0", models.k_best, grace_s=models.deadline_s)  # all answers are compared
        local = LocalMixture(project, models.k_best, prefix="dmoe0")
        local.gate.load_state_dict(layer.gate.state_dict())
        step = Step.random(64, models.hidden_size)
        ours, plain = step.run(layer), step.run(local)
        for name, mine, theirs in zip(("the output", "the gradient", "the gate's gradient"), ours, plain, strict=False):
            assert_close(name, mine, theirs)
        x = torch.randn(64, models.chain_hidden_size)
        stage = LocalExpert(project, ExpertUid("chain", (0,)))
        assert_close("the chain's output", training.swarm.expert("chain.0")(x).detach(), stage.forward(x))

    def ready(self) -> None:
        self._training.ready()

    def measure(self, work: Work) -> float:
        self._num_runs += 1
        batches = CHAIN_BATCHES if work.callers == 1 else WAVES * work.callers
        load = Load(
            model="chain" if work.name == "chain" else "dmoe",
            rows=work.rows,
            in_flight=work.callers,
            warm_batches=work.callers,
            batches=batches,
        )
        way = Way(delay_s=work.delay_s, lost=work.lost, seed=1_000 * self._seed + self._num_runs)
        return self._training.throughput(load, way).rows_per_s

    def close(self) -> None:
        self._training.__exit__(None, None, None)


if __name__ == "__main__":
    serve(lambda: OurDistance(settings_of(Settings)))
