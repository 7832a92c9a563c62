"""A simulated DHT of ours; the run is made when the first of its figures is asked for. Run by benchmarks.sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.simulated_gets import Outcome, Scenario, simulate
from benchmarks.worker import Work, serve, settings_of

SMALLEST_SLOPE = 1e-3  # a slope of nothing, or less, has no ratio


@dataclass(frozen=True, slots=True)
class Settings:
    """`sizes`: numbers of peers, one run each."""

    sizes: list[int]
    num_gets: int
    num_keys: int
    churn_per_min: float
    hostile: float
    duration_s: float
    seed: int


class OurSimulation:
    """Figures: `right` and `median-round-trips` of the largest size, `growth` over all, `mean-N` of one size."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outcomes: dict[int, Outcome] = {}

    def check(self) -> None:
        """Nothing: a get that is not right is the figure itself."""

    def ready(self) -> None:
        """Virtual time does not pass while the process is stopped."""

    def measure(self, work: Work) -> float:
        largest = self._settings.sizes[-1]
        match work.name:
            case "right":
                return self._of(largest).right
            case "median-round-trips":
                return self._of(largest).median_round_trips
            case "mean-round-trips":
                return self._of(work.rows).mean_round_trips
            case "growth":
                means = [(math.log2(size), self._of(size).mean_round_trips) for size in self._settings.sizes]
                return max(SMALLEST_SLOPE, slope(means))
        raise ValueError(f"no figure is called {work.name}")

    def close(self) -> None:
        """Nothing is open."""

    def _of(self, size: int) -> Outcome:
        if size not in self._outcomes:
            settings = self._settings
            self._outcomes[size] = simulate(
                Scenario(
                    size,
                    settings.num_gets,
                    settings.num_keys,
                    settings.churn_per_min,
                    hostile=settings.hostile,
                    duration_s=settings.duration_s,
                    seed=settings.seed,
                )
            )
        return self._outcomes[size]


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


if __name__ == "__main__":
    serve(lambda: OurSimulation(settings_of(Settings)))
