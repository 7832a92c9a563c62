"""A small causal transformer over bytes; what its feed-forward layers are is the caller's choice. Pure torch."""

# R sequences in the batch, T bytes of each, D features

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from experiments.text_bytes import NUM_BYTES

INIT_STD = 0.02  # of embeddings, as GPT-2's


class ByteTransformer(nn.Module):
    """Bytes int64 [R, T] to the scores of each next one [R, T, 256].

    `feed_forward(number)` makes a layer's block, [R, T, D] to [R, T, D]; it is normalised before and added after.
    """

    def __init__(self, *, layers: int, width: int, heads: int, context: int, feed_forward: Callable[[int], nn.Module]):
        super().__init__()
        self.context = context
        self.bytes = nn.Embedding(NUM_BYTES, width)
        self.positions = nn.Embedding(context, width)
        nn.init.normal_(self.bytes.weight, std=INIT_STD)
        nn.init.normal_(self.positions.weight, std=INIT_STD)
        self.blocks = nn.ModuleList(Block(width, heads, feed_forward(number)) for number in range(layers))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, NUM_BYTES)

    def forward(self, given_RT: Tensor) -> Tensor:
        x = self.bytes(given_RT) + self.positions.weight[: given_RT.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.scores(self.norm(x))
        return scores

    def loss(self, rows_RT: Tensor) -> Tensor:
        """Mean cross entropy of each next byte of the rows [R, context + 1], in nats."""
        return cross_entropy(self(rows_RT[:, :-1]).flatten(0, 1), rows_RT[:, 1:].flatten())


class Block(nn.Module):
    """Causal attention, then the feed-forward layer."""

    def __init__(self, width: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        num_rows, length, width = x.shape
        projected = self.queries_keys_values(self.attention_norm(x))
        # [R, T, 3, heads, head] -> three of [R, heads, T, head]
        split = projected.view(num_rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        x = x + self.attention_output(attended.transpose(1, 2).reshape(num_rows, length, width))
        changed: Tensor = self.feed_forward(self.norm(x))
        return x + changed


def dense_block(width: int, inner: int) -> nn.Module:
    """D -> inner -> D with a ReLU between: the swarm's `mlp`, as wide as asked."""
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))


def windows(text: Tensor, starts: Tensor, context: int) -> Tensor:
    """Rows [R, context + 1] of a text that begin at `starts` [R]."""
    return text[starts[:, None] + torch.arange(context + 1)]


@torch.no_grad()
def bits_per_byte(model: ByteTransformer, rows_RT: Tensor, rows_at_once: int) -> float:
    """Over all next bytes of these rows. No expert learns by it."""
    model.eval()
    losses: Sequence[float] = [model.loss(some).item() * len(some) for some in rows_RT.split(rows_at_once)]
    model.train()
    return sum(losses) / len(rows_RT) / torch.log(torch.tensor(2.0)).item()


@torch.no_grad()
def sample(model: ByteTransformer, start: bytes, num_bytes: int, *, temperature: float, seed: int) -> str:
    """`start` and what the model writes after it; bytes that are no UTF-8 are shown as such."""
    random = torch.Generator().manual_seed(seed)
    model.eval()
    written = torch.tensor([list(start)])
    for _ in range(num_bytes):
        scores = model(written[:, -model.context :])[0, -1] / temperature
        following = torch.multinomial(scores.softmax(dim=0), 1, generator=random)
        written = torch.cat([written, following[None]], dim=1)
    model.train()
    return bytes(written[0].tolist()).decode("utf-8", "backslashreplace")
