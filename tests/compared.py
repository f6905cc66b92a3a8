"""Sources for the tests of `infer compare`: small nets with modules inside modules."""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    """Self-attention with a projection of its own for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        found: torch.Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """A Transformer's block, which returns a tuple of one, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.norms[0](x + self.attention(x))
        return (self.norms[1](x + self.mlp(x)),)


class Encoder(nn.Module):
    """Two blocks on embeddings of ids, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(ids)
        for block in self.blocks:
            (x,) = block(x)
        return {"logits": self.head(x.mean(1))}


class Convolutions(nn.Module):
    """What does not show in a graph as it was written: a folded norm, writes in place, a module that is
    called twice, and one that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(4, 4, 1)
        self.pool = nn.AdaptiveMaxPool2d(2, return_indices=False)
        self.halves = Halves()
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.twice(torch.relu(self.twice(x)))
        left, right = self.halves(x)
        found: torch.Tensor = self.head(torch.cat([left.mean((2, 3)), right.amax((2, 3)), left.amax((2, 3)), right.mean((2, 3))], 1))
        return found


class Halves(nn.Module):
    """The two halves of the channels."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :2], x[:, 2:]


def encoder() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return Encoder().eval(), {"ids": torch.arange(12).reshape(2, 6)}


def convolutions() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = Convolutions()
    norm = net.stem[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.normal_(norm.bias)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return net.eval(), {"x": torch.randn(2, 3, 8, 8)}
