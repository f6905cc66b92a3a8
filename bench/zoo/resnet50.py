"""ResNet-50 (He et al. 2016, arXiv:1512.03385): 25.6 M parameters, random weights."""

from __future__ import annotations

import torch
from torch import nn

from bench.zoo.random_weights import imagenet_task, settled
from bench.zoo.residual import ResNet
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "random"


def architecture() -> nn.Module:
    """The fresh network, whose blocks start as small corrections (Goyal et al. 2017, arXiv:1706.02677).

    With gains of 1, sixteen random blocks amplify rounding until PyTorch's own float32 answers are
    2e-5 off its float64 ones, which no trained network does. Gains of 0 would hide the blocks.
    """
    model = ResNet((3, 4, 6, 3), True, 64, 1000)
    for block in model.blocks:
        nn.init.constant_(block.body[-1].weight, 0.25)
    return model


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, which takes `pixel_values`: float32, shape = (batch, 3, 224, 224)."""
    return settled(architecture, 224)


def task() -> TaskSpec:
    """ImageNet's, at 224 × 224."""
    return imagenet_task(224)


def samples() -> list[Array]:
    """A cat."""
    from skimage import data as photos

    return [photos.cat()]
