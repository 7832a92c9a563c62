import sys
import torch
import learning_at_home as lah
from learning_at_home.demo.digits import make_digits_task

task = make_digits_task()
with lah.Swarm.connect(sys.argv[1]) as swarm:  # "http://127.0.0.1:8765/p/digits"
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
    right = model(task.test_rows).argmax(dim=1) == task.test_labels
    print(f"test accuracy {right.float().mean():.3f} after {swarm.stats().calls:,} calls to experts")
