"""Tell three spirals apart: `python spirals.py http://127.0.0.1:8765/p/spirals [STEPS]`."""

import math
import sys

import torch
from torch import Tensor, nn

import learning_at_home as lah


class Model(nn.Module):
    """Points of the plane [rows, 2] to the scores of three classes [rows, 3]."""

    def __init__(self, swarm: lah.Swarm) -> None:
        super().__init__()
        self.enter = nn.Linear(2, 64)
        self.mixture = lah.DMoE(swarm, layer="ffn0", k_best=4)  # the gate is here, the experts are out there
        self.leave = nn.Linear(64, 3)

    def forward(self, points: Tensor) -> Tensor:
        return self.leave(self.mixture(torch.relu(self.enter(points))))


def draw_spirals(num_rows: int) -> tuple[Tensor, Tensor]:
    """Points [rows, 2] and the spiral that each lies on [rows]: two turns, no straight line parts them."""
    labels = torch.randint(3, (num_rows,))
    radius = torch.rand(num_rows).sqrt()
    angle = 4 * math.pi * radius + 2 * math.pi / 3 * labels + 0.25 * torch.randn(num_rows)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


torch.set_num_threads(1)  # the nodes of a local swarm need this machine's cores, too
url, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
torch.manual_seed(0)
with lah.Swarm.connect(url, run="spirals") as swarm:
    print("watch it at", swarm.dashboard_url, flush=True)
    swarm.wait_until_alive("ffn0", num_experts=4)
    model = Model(swarm)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)  # of what is local; each expert has its own
    for step in range(steps):
        points, labels = draw_spirals(512)
        scores = model(points)
        loss = nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()  # the experts learn here, each on its host
        optimizer.step()
        accuracy = (scores.argmax(dim=1) == labels).float().mean()
        swarm.report(step, loss=loss, accuracy=accuracy)
        if step % 20 == 19:
            stats = swarm.stats()
            failed = f"{stats.failures} of {stats.calls} calls failed"
            print(f"step {step + 1}: loss {loss:.3f}, accuracy {accuracy:.2f}, {failed}", flush=True)
