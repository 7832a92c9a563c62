"""Train a model on a swarm: start `lah demo` (or a coordinator and nodes of your own), then run this beside it."""

import sys

import torch

import learning_at_home as lah
from learning_at_home.demo.digits import make_digits_task

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8765/p/digits"
task = make_digits_task()

with lah.Swarm.connect(address) as swarm:
    swarm.wait_until_alive()
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 64),
        lah.DMoE(swarm, layer="ffn0", k_best=4),
        lah.DMoE(swarm, layer="ffn1", k_best=4),
        torch.nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(100):
        rows = torch.randint(len(task.train_rows), (512,))
        loss = torch.nn.functional.cross_entropy(model(task.train_rows[rows]), task.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()  # the experts learn too, on the computers that host them
        optimizer.step()
        swarm.report(step, loss=loss)
    with torch.no_grad():
        right = model(task.test_rows).argmax(dim=1) == task.test_labels
    print(f"test accuracy {right.float().mean():.3f} after {swarm.stats().calls:,} calls to experts")
