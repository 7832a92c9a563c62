"""Gated experts and the Lion optimizer: a package that nodes can allow. See docs/custom-experts.md."""

import torch
from learning_at_home.project import LayerSpec
from node_agent.experts.architectures import register_expert
from node_agent.experts.update_rules import UpdateRule, register_optimizer
from torch import nn

INNER_FACTOR = 4


def flop_per_row(layer: LayerSpec) -> int:
    """Of three products, forward; an element-wise operation does not count."""
    return (layer.sequence_length or 1) * 2 * 3 * INNER_FACTOR * layer.hidden_size**2


@register_expert("gated", flop_per_row=flop_per_row)
class Gated(nn.Module):
    """x + down(silu(gate(x)) * up(x)). Source: Shazeer, "GLU Variants Improve Transformer", 2020."""

    dropout = 0.0

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        size, inner = layer.hidden_size, INNER_FACTOR * layer.hidden_size
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, inner)
        self.up = nn.Linear(size, inner)
        self.drop = nn.Dropout(self.dropout)
        self.down = nn.Linear(inner, size)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        normal = self.norm(rows)
        return rows + self.down(self.drop(nn.functional.silu(self.gate(normal)) * self.up(normal)))


@register_expert("gated-dropout", flop_per_row=flop_per_row)
class GatedWithDropout(Gated):
    """The same with a tenth of the inner features dropped: the same ones in a request's forward and backward."""

    dropout = 0.1


@register_optimizer("lion")
class Lion(UpdateRule):
    """Steps of one length, by the sign of a mean. Source: Chen et al., 2023."""

    state = ("mean",)

    def step(self, parameters, gradients, state, learning_rate):
        first, second = self.spec.betas
        for parameter, gradient, mean in zip(parameters, gradients, state["mean"], strict=True):
            direction = torch.lerp(gradient, mean, first).sign_()
            parameter.mul_(1 - learning_rate * self.spec.weight_decay).sub_(direction, alpha=learning_rate)
            mean.lerp_(gradient, 1 - second)
