"""mobilevit-patches and mobilevitv2-patches: cutting into patches at sizes known only at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from converters.patches.replace import TorchPatch

_V1 = "transformers.models.mobilevit.modeling_mobilevit:MobileViTLayer."
_V2 = "transformers.models.mobilevitv2.modeling_mobilevitv2:MobileViTV2Layer."


def _unfold_v1(original: Any, self: Any, features: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    rows, columns = self.patch_height, self.patch_width
    batch, channels, height, width = features.shape
    high, wide = (height + rows - 1) // rows, (width + columns - 1) // columns
    # at whole patches this resizes to the same size, which changes nothing
    features = nn.functional.interpolate(
        features, size=(high * rows, wide * columns), mode="bilinear", align_corners=False
    )
    patches = features.reshape(batch * channels * high, rows, wide, columns).transpose(1, 2)
    patches = patches.reshape(batch, channels, high * wide, rows * columns).transpose(1, 3)
    return patches.reshape(batch * rows * columns, high * wide, channels), {
        "orig_size": (height, width),
        "batch_size": batch,
        "channels": channels,
        "interpolate": True,
        "num_patches": high * wide,
        "num_patches_width": wide,
        "num_patches_height": high,
    }


def _unfold_v2(original: Any, self: Any, feature_map: torch.Tensor) -> tuple[torch.Tensor, tuple[Any, Any]]:
    rows, columns = self.patch_height, self.patch_width
    batch, channels, height, width = feature_map.shape
    high, wide = height // rows, width // columns
    # unfold() leaves out what does not fill a patch
    whole = feature_map[:, :, : high * rows, : wide * columns]
    patches = whole.reshape(batch, channels, high, rows, wide, columns).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(batch, channels, rows * columns, high * wide), (height, width)


def _fold_v2(original: Any, self: Any, patches: torch.Tensor, output_size: tuple[Any, Any]) -> torch.Tensor:
    rows, columns = self.patch_height, self.patch_width
    batch, channels = patches.shape[:2]
    height, width = output_size
    high, wide = height // rows, width // columns
    whole = patches.reshape(batch, channels, rows, columns, high, wide).permute(0, 1, 4, 2, 5, 3)
    whole = whole.reshape(batch, channels, high * rows, wide * columns)
    # and fold() fills it with zeros
    return nn.functional.pad(whole, (0, width - wide * columns, 0, height - high * rows))


MOBILEVIT_PATCHES = (TorchPatch("mobilevit-patches", (_V1 + "unfolding",), _unfold_v1),)
"""MobileViT resizes its features to whole patches, but only if they are not whole already.

Without it, every exporter keeps the branch of the example, and the graph fails where a stage
has an odd height or width where the example's was even.
"""

MOBILEVITV2_PATCHES = (
    TorchPatch("mobilevitv2-patches", (_V2 + "unfolding",), _unfold_v2),
    TorchPatch("mobilevitv2-patches", (_V2 + "folding",), _fold_v2),
)
"""MobileViTV2 cuts and joins patches with unfold() and fold().

Without these, no exporter can convert it with open sizes: torch.export cannot solve fold()'s
check of the number of patches, and TorchScript's fold() needs constant sizes.
"""
