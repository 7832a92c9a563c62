"""The bare products of an expert on a device: what a runtime is measured against. Run by benchmarks.sides.

One set of weights, the mean number of rows, one product after another, as often as there are experts; for a backward
the products of a recomputed forward, of the inputs' gradients and of the weights', and one fused Adam step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.runtime_batches import Settings, prepare_torch, rows_of_experts
from benchmarks.worker import Work, seconds_per_call, serve, settings_of

INNER_FACTOR = 4  # of the `ffn`: d -> 4d -> 4d -> d


class MatmulChain:
    """The three products of an `ffn`, with nothing between them."""

    def __init__(self, settings: Settings) -> None:
        prepare_torch(settings)
        if settings.architecture != "ffn":
            raise ValueError(f"the products of {settings.architecture} are not known here")
        self._device = torch.device(settings.device)
        rows = rows_of_experts(settings)
        self._num_batches, mean_rows = len(rows), round(sum(rows) / len(rows))
        size, inner = settings.hidden_size, INNER_FACTOR * settings.hidden_size
        shapes = [(size, inner), (inner, inner), (inner, size)]
        self._weights = [torch.randn(shape, device=self._device) / shape[0] ** 0.5 for shape in shapes]
        self._rows = torch.randn(mean_rows, size, device=self._device)
        self._gradient = torch.randn(mean_rows, size, device=self._device)
        parameters = [weight.requires_grad_() for weight in self._weights]
        self._optimizer = torch.optim.Adam(parameters, fused=True)

    def check(self) -> None:
        """Plain torch it is."""

    def ready(self) -> None:
        """It waits for nobody."""

    @torch.no_grad()
    def measure(self, work: Work) -> float:
        """Seconds for all batches together."""
        step = self._forward if work.name == "forward" else self._forward_backward

        def all_batches() -> None:
            for _ in range(self._num_batches):
                step()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return seconds_per_call(all_batches, work)

    def close(self) -> None:
        """It holds nothing."""

    def _forward(self) -> list[Tensor]:
        """The inputs of every product."""
        inputs = [self._rows]
        for weight in self._weights:
            inputs.append(inputs[-1] @ weight)
        return inputs

    def _forward_backward(self) -> None:
        self._forward()
        inputs = self._forward()
        gradient = self._gradient
        for weight, rows in zip(reversed(self._weights), reversed(inputs[:-1]), strict=True):
            weight.grad = rows.T @ gradient
            gradient = gradient @ weight.T
        self._optimizer.step()


if __name__ == "__main__":
    serve(lambda: MatmulChain(settings_of(Settings)))
