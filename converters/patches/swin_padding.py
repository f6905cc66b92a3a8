"""swin-patch-padding, swin-window-padding and swin-merge-padding: no branches on the size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from converters.patches.replace import TorchPatch

_MODELS = "transformers.models."


def _pad_patches(
    original: Any, self: Any, pixel_values: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    rows, columns = self.patch_size
    return nn.functional.pad(
        pixel_values, (0, (columns - width % columns) % columns, 0, (rows - height % rows) % rows)
    )


def _pad_windows(
    original: Any, self: Any, hidden_states: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, tuple[int, ...]]:
    padded, _ = original(self, hidden_states, height, width)
    # the layer asks these only whether to cut the padding off again; cutting nothing off is harmless
    return padded, (0, 0, 0, 1, 0, 1)


def _pad_merging(
    original: Any, self: Any, input_feature: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    return nn.functional.pad(input_feature, (0, 0, 0, width % 2, 0, height % 2))


SWIN_PATCHES = TorchPatch(
    "swin-patch-padding",
    (
        _MODELS + "swin.modeling_swin:SwinPatchEmbeddings.maybe_pad",
        _MODELS + "swinv2.modeling_swinv2:Swinv2PatchEmbeddings.maybe_pad",
        _MODELS + "donut.modeling_donut_swin:DonutSwinPatchEmbeddings.maybe_pad",
        _MODELS + "maskformer.modeling_maskformer_swin:MaskFormerSwinPatchEmbeddings.maybe_pad",
    ),
    _pad_patches,
)
"""Images are padded to whole patches, but only `if width % patch != 0`.

Without it, a graph traced at whole patches silently drops the rest of all other images.
"""

SWIN_WINDOWS = TorchPatch(
    "swin-window-padding",
    (
        _MODELS + "swin.modeling_swin:SwinLayer.maybe_pad",
        _MODELS + "swinv2.modeling_swinv2:Swinv2Layer.maybe_pad",
        _MODELS + "swin2sr.modeling_swin2sr:Swin2SRLayer.maybe_pad",
        _MODELS + "donut.modeling_donut_swin:DonutSwinLayer.maybe_pad",
        _MODELS + "maskformer.modeling_maskformer_swin:MaskFormerSwinLayer.maybe_pad",
        _MODELS + "clap.modeling_clap:ClapAudioLayer.maybe_pad",
    ),
    _pad_windows,
)
"""Features are padded to whole windows, and the padding is cut off again if there was any.

Without it, a graph traced at whole windows keeps the padding at all other sizes, and fails.
"""

SWIN_MERGING = TorchPatch(
    "swin-merge-padding",
    (
        _MODELS + "swin.modeling_swin:SwinPatchMerging.maybe_pad",
        _MODELS + "swinv2.modeling_swinv2:Swinv2PatchMerging.maybe_pad",
        _MODELS + "swin2sr.modeling_swin2sr:Swin2SRPatchMerging.maybe_pad",
        _MODELS + "donut.modeling_donut_swin:DonutSwinPatchMerging.maybe_pad",
        _MODELS + "maskformer.modeling_maskformer_swin:MaskFormerSwinPatchMerging.maybe_pad",
        _MODELS + "clap.modeling_clap:ClapAudioPatchMerging.maybe_pad",
    ),
    _pad_merging,
)
"""Two by two features are merged, padded only if a side is odd.

Without it, a graph traced at even sides fails or is silently wrong where a stage has an odd one.
"""
