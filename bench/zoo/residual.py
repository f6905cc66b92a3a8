"""The ResNet (He et al. 2016, arXiv:1512.03385), with plain blocks (18 layers) or bottlenecks (50)."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Convolutions, and what came in added to what they give."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        if bottleneck:  # the stride is in the 3 × 3 convolution, as in v1.5
            shapes = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        else:
            shapes = [(before, width, 3, stride), (width, after, 3, 1)]
        layers: list[nn.Module] = []
        for a, b, kernel, step in shapes:
            conv = nn.Conv2d(a, b, kernel, step, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """`pixel_values`, shape = (batch, 3, H, W), to `logits`, shape = (batch, classes).

    A `small` one is for pictures of about 32 × 32: its stem shrinks them by 2, not by 4.
    """

    def __init__(
        self, depths: tuple[int, ...], bottleneck: bool, width: int, classes: int, small: bool = False
    ) -> None:
        super().__init__()
        stem: list[nn.Module] = [nn.BatchNorm2d(width), nn.ReLU()]
        if small:
            stem.insert(0, nn.Conv2d(3, width, 3, 2, padding=1, bias=False))
        else:
            stem.insert(0, nn.Conv2d(3, width, 7, 2, padding=3, bias=False))
            stem.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*stem)
        blocks, before = [], width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                blocks.append(Block(before, width * 2**stage, 2 if stage and not i else 1, bottleneck))
                before = width * 2**stage * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.blocks(self.stem(pixel_values)))}
