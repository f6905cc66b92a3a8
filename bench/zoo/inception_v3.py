"""Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567): 27.2 M parameters, of which the auxiliary
classifier, which helps training and is not asked afterwards, has 3.3 M. Random weights.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.random_weights import imagenet_task, settled
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "random"

SIZE = 299


class Conv(nn.Sequential):
    """Convolution without padding if it halves, batch normalization, ReLU."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ) -> None:
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if pad and stride == 1 else (0, 0)
        super().__init__(
            nn.Conv2d(before, after, (high, wide), stride, padding, bias=False),
            nn.BatchNorm2d(after, eps=1e-3),
            nn.ReLU(),
        )


class Side(nn.Module):
    """Branches that see the same, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _pooled(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(3, 1, padding=1), Conv(before, after, 1))


def _a(before: int, pooled: int) -> nn.Module:
    return Side(
        Conv(before, 64, 1),
        nn.Sequential(Conv(before, 48, 1), Conv(48, 64, 5)),
        nn.Sequential(Conv(before, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3)),
        _pooled(before, pooled),
    )


def _b() -> nn.Module:
    return Side(
        Conv(288, 384, 3, 2),
        nn.Sequential(Conv(288, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3, 2)),
        nn.MaxPool2d(3, 2),
    )


def _c(c: int) -> nn.Module:
    tall, long = (7, 1), (1, 7)
    return Side(
        Conv(768, 192, 1),
        nn.Sequential(Conv(768, c, 1), Conv(c, c, long), Conv(c, 192, tall)),
        nn.Sequential(
            Conv(768, c, 1), Conv(c, c, tall), Conv(c, c, long), Conv(c, c, tall), Conv(c, 192, long)
        ),
        _pooled(768, 192),
    )


def _d() -> nn.Module:
    seven = (Conv(768, 192, 1), Conv(192, 192, (1, 7)), Conv(192, 192, (7, 1)))
    return Side(
        nn.Sequential(Conv(768, 192, 1), Conv(192, 320, 3, 2)),
        nn.Sequential(*seven, Conv(192, 192, 3, 2)),
        nn.MaxPool2d(3, 2),
    )


def _e(before: int) -> nn.Module:
    def split() -> nn.Module:
        return Side(Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1)))

    return Side(
        Conv(before, 320, 1),
        nn.Sequential(Conv(before, 384, 1), split()),
        nn.Sequential(Conv(before, 448, 1), Conv(448, 384, 3), split()),
        _pooled(before, 192),
    )


class InceptionV3(nn.Module):
    """`pixel_values`, shape = (batch, 3, 299, 299), to `logits`, shape = (batch, 1000); in training also to
    `aux_logits`, what the classifier half way up says."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Sequential(
            *(Conv(3, 32, 3, 2), Conv(32, 32, 3, pad=False), Conv(32, 64, 3), nn.MaxPool2d(3, 2)),
            *(Conv(64, 80, 1), Conv(80, 192, 3, pad=False), nn.MaxPool2d(3, 2)),
            *(_a(192, 32), _a(256, 64), _a(288, 64), _b(), _c(128), _c(160), _c(160), _c(192)),
        )
        self.aux = nn.Sequential(
            *(nn.AvgPool2d(5, 3), Conv(768, 128, 1), Conv(128, 768, 5, pad=False)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 1000)),
        )
        self.upper = nn.Sequential(_d(), _e(1280), _e(2048), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(2048, 1000))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        half = self.lower(pixel_values)
        logits = {"logits": self.head(self.upper(half))}
        return {**logits, "aux_logits": self.aux(half)} if self.training else logits


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, which takes `pixel_values`: float32, shape = (batch, 3, 299, 299)."""
    return settled(InceptionV3, SIZE)


def task() -> TaskSpec:
    """ImageNet's, at 299 × 299."""
    return imagenet_task(SIZE)


def samples() -> list[Array]:
    """A cat."""
    from skimage import data as photos

    return [photos.cat()]
