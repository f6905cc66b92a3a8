"""VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556): 138 M parameters, random weights."""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.random_weights import imagenet_task, settled
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "random"

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """`pixel_values`, shape = (batch, 3, 224, 224), to `logits`, shape = (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, depth in STAGES:
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.Flatten())
        wide = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
        self.head = nn.Sequential(*wide, nn.Dropout(), nn.Linear(4096, 1000))
        for module in self.modules():  # without norms, only He's initialization keeps activations alive
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                nn.init.normal_(module.bias, std=0.1)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.features(pixel_values))}


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, which takes `pixel_values`: float32, shape = (batch, 3, 224, 224)."""
    return settled(VGG16, 224)


def task() -> TaskSpec:
    """ImageNet's, at 224 × 224."""
    return imagenet_task(224)


def samples() -> list[Array]:
    """A cat."""
    from skimage import data as photos

    return [photos.cat()]
