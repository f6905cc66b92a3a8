"""Inception-ResNet-v1 (Szegedy et al. 2016, arXiv:1602.07261) as FaceNet uses it: a face of 160 × 160 to a
vector of length 1 with 512 numbers. 23.5 M parameters, random weights: no faces with names are in any
package, so this one shows parity and speed, not accuracy.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.random_weights import settled
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "random"

SIZE = 160


class Conv(nn.Sequential):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, before: int, after: int, kernel: int | tuple[int, int], **settings: int) -> None:
        padding = settings.pop("padding", None)
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        pad = (sides[0] // 2, sides[1] // 2) if padding is None else (padding, padding)
        super().__init__(
            nn.Conv2d(before, after, sides, padding=pad, bias=False, **settings),
            nn.BatchNorm2d(after, eps=1e-3),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Branches side by side, joined, scaled down and added to what came in."""

    def __init__(self, channels: int, scale: float, branches: list[nn.Module], joined: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = nn.Conv2d(joined, channels, 1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return torch.relu(x + self.scale * found)


class Reduction(nn.Module):
    """Branches that halve the picture, and its maximum, side by side."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([*branches, nn.MaxPool2d(3, stride=2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _small() -> Residual:
    branches = [
        Conv(256, 32, 1),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3)),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3), Conv(32, 32, 3)),
    ]
    return Residual(256, 0.17, list(branches), 96)


def _wide(channels: int, inner: int, length: int, scale: float) -> Residual:
    long = nn.Sequential(
        Conv(channels, inner, 1), Conv(inner, inner, (1, length)), Conv(inner, inner, (length, 1))
    )
    return Residual(channels, scale, [Conv(channels, inner, 1), long], 2 * inner)


class InceptionResnetV1(nn.Module):
    """`pixel_values`, shape = (batch, 3, 160, 160), to `embedding`, shape = (batch, 512)."""

    def __init__(self) -> None:
        super().__init__()
        halve = {"stride": 2, "padding": 0}
        self.body = nn.Sequential(
            Conv(3, 32, 3, **halve),
            Conv(32, 32, 3, padding=0),
            Conv(32, 64, 3),
            nn.MaxPool2d(3, stride=2),
            Conv(64, 80, 1),
            Conv(80, 192, 3, padding=0),
            Conv(192, 256, 3, **halve),
            *(_small() for _ in range(5)),
            Reduction(
                [
                    Conv(256, 384, 3, **halve),
                    nn.Sequential(Conv(256, 192, 1), Conv(192, 192, 3), Conv(192, 256, 3, **halve)),
                ]
            ),
            *(_wide(896, 128, 7, 0.10) for _ in range(10)),
            Reduction(
                [
                    nn.Sequential(Conv(896, 256, 1), Conv(256, 384, 3, **halve)),
                    nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, **halve)),
                    nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3), Conv(256, 256, 3, **halve)),
                ]
            ),
            *(_wide(1792, 192, 3, 0.20) for _ in range(6)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.6),
        )
        self.head = nn.Sequential(nn.Linear(1792, 512, bias=False), nn.BatchNorm1d(512, eps=1e-3))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": nn.functional.normalize(self.head(self.body(pixel_values)), dim=1)}


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, which takes `pixel_values`: float32, shape = (batch, 3, 160, 160)."""
    return settled(InceptionResnetV1, SIZE)


def task() -> TaskSpec:
    """A face that was cut out, scaled as FaceNet does: (x - 127.5) / 128. The threshold is an example."""
    return TaskSpec(
        "face-embedding",
        {
            "input": "pixel_values",
            "output": "embedding",
            "steps": [
                {"op": "resize", "height": SIZE, "width": SIZE},
                {"op": "normalize", "mean": [127.5] * 3, "std": [128.0] * 3},
            ],
            "threshold": 0.5,
        },
    )


def samples() -> list[Array]:
    """The face of an astronaut, cut out."""
    from skimage import data as photos

    return [photos.astronaut()[0:200, 120:320]]
