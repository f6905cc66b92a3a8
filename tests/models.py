"""Small modules that tests convert."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class TwoLayers(nn.Module):
    """The 10-5-2 net."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 5)
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.fc2(torch.relu(self.fc1(x)))}


class Pair(NamedTuple):
    total: torch.Tensor
    twice: torch.Tensor


class Nested(nn.Module):
    """Returns every kind of nesting, an input passed through, a tensor twice, a constant and None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, parts: list[torch.Tensor]) -> dict[str, object]:
        y = self.linear(x) + parts[0] - parts[1]
        return {
            "x": x,
            "pair": Pair(y.sum(dim=1), y * 2),
            "items": [y, (y, y + 1)],
            "scale": 2,
            "nothing": None,
        }


class Tied(nn.Module):
    """Input and output embeddings share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5000, 64)
        self.head = nn.Linear(64, 5000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embed(ids)
        scores: torch.Tensor = self.head(hidden)
        return scores


class FrozenBatch(nn.Module):
    """Answers at every batch size, but by a Python number that exporters bake in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [self.linear(row) for row in x]
        return torch.stack(rows)


class OnlySquare(nn.Module):
    """Does not answer at other lengths than 8 itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.positions)


class DataDependentSize(nn.Module):
    """Its first output's length depends on the values."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"positive": x[x > 0], "total": x.sum(dim=1)}


class Dropout(nn.Module):
    """Functional dropout that ignores eval mode, and so never answers the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=True)
