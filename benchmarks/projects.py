"""The projects that benchmarks host: one layer of one architecture."""

from __future__ import annotations

from learning_at_home.project import LayerSpec, OptimizerSpec, ProjectRecord

PREFIX = "bench"
DEADLINE_S = 120.0  # a benchmark waits for the slowest machine; a figure is no timeout


def project_of(architecture: str, hidden_size: int, grid: tuple[int, ...]) -> ProjectRecord:
    """Trained by Adam and clipped, as a new project is."""
    layer = LayerSpec(
        prefix=PREFIX,
        grid=grid,
        architecture=architecture,
        hidden_size=hidden_size,
        optimizer=OptimizerSpec(name="adam"),
        deadline_s=DEADLINE_S,
    )
    return ProjectRecord(id="benchmark", layers=(layer,)).check()
