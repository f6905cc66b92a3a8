"""The U-Net (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597) for two or three dimensions, small,
padded, with batch normalization."""

from __future__ import annotations

import torch
from torch import nn


class UNet(nn.Module):
    """`pixel_values`, shape = (batch, 1, *spatial), to `logits`, shape = (batch, classes, *spatial).

    Each of `levels` halves the picture once, so sizes must be multiples of 2^levels.
    """

    def __init__(self, axes: int = 2, width: int = 16, levels: int = 2, classes: int = 1) -> None:
        super().__init__()
        conv, up = (nn.Conv2d, nn.ConvTranspose2d) if axes == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        pool = nn.MaxPool2d if axes == 2 else nn.MaxPool3d
        widths = [width * 2**i for i in range(levels + 1)]
        self.pool = pool(2)
        self.down = nn.ModuleList(_double(axes, a, b) for a, b in zip([1, *widths], widths, strict=False))
        back = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(up(a, b, 2, stride=2) for a, b in back)
        self.up = nn.ModuleList(_double(axes, 2 * b, b) for _, b in back)
        self.head = conv(width, classes, 1)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        x, kept = pixel_values, []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            kept.append(x)
        kept.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([kept.pop(), enlarge(x)], dim=1))
        return {"logits": self.head(x)}


def _double(axes: int, before: int, after: int) -> nn.Sequential:
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [conv(channels, after, 3, padding=1, bias=False), norm(after), nn.ReLU()]
    return nn.Sequential(*layers)


def overlap_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and one minus the soft Dice: the first is smooth, the second is what counts."""
    likely = logits.sigmoid()
    dice = (2 * (likely * truth).sum() + 1) / (likely.sum() + truth.sum() + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice


def dice(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the pixels that are more likely inside than not."""
    called = logits > 0
    return float(2 * (called * truth).sum() / (called.sum() + truth.sum()).clamp(min=1))
