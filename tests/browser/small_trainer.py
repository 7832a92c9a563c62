"""A researcher's program for the live tests: `python -m tests.browser.small_trainer URL` trains until it is ended.

Synchronous. Small rows and a small model: what matters is that requests flow and a loss is reported.
"""

import sys

import torch

import learning_at_home as lah

ROWS, FEATURES, CLASSES = 32, 64, 10


def main(url: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with lah.Swarm.connect(url) as swarm:
        swarm.wait_until_alive("ffn0", timeout_s=60)
        model = torch.nn.Sequential(lah.DMoE(swarm, layer="ffn0", k_best=4), torch.nn.Linear(FEATURES, CLASSES))
        optimizer = torch.optim.Adam(model.parameters())
        step = 0
        while True:
            rows = torch.randn(ROWS, FEATURES)
            loss = torch.nn.functional.cross_entropy(model(rows), rows[:, :CLASSES].argmax(dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            swarm.report(step, loss=loss)


if __name__ == "__main__":
    main(sys.argv[1])
