"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993): 8.0 M parameters, random weights."""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.random_weights import imagenet_task, settled
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "random"

DEPTHS, GROWTH = (6, 12, 24, 16), 32


class Dense(nn.Module):
    """A layer that adds 32 channels to all that came before it."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, 4 * GROWTH, 1, bias=False)),
            *(nn.BatchNorm2d(4 * GROWTH), nn.ReLU()),
            nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class DenseNet121(nn.Module):
    """`pixel_values`, shape = (batch, 3, 224, 224), to `logits`, shape = (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)]
        layers += [nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        width = 64
        for stage, depth in enumerate(DEPTHS):
            if stage:
                layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                width //= 2
            layers += [Dense(width + GROWTH * i) for i in range(depth)]
            width += GROWTH * depth
        pool = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), pool, nn.Flatten())
        self.head = nn.Linear(width, 1000)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(pixel_values))}


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, which takes `pixel_values`: float32, shape = (batch, 3, 224, 224)."""
    return settled(DenseNet121, 224)


def task() -> TaskSpec:
    """ImageNet's, at 224 × 224."""
    return imagenet_task(224)


def samples() -> list[Array]:
    """A cat."""
    from skimage import data as photos

    return [photos.cat()]
