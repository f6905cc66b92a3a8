"""same-padding: TensorFlow's SAME padding without a branch on the size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from converters.patches.replace import TorchPatch


def _same_padding(original: Any, features: torch.Tensor, conv_layer: nn.Conv2d) -> torch.Tensor:
    # https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2: what the last stride leaves
    # is size mod stride, or a whole stride if that is 0, which is (size - 1) mod stride + 1
    padding: list[Any] = []
    for axis in (1, 0):  # pad() takes the last axis first
        size = features.shape[-2 + axis]
        kernel, stride, dilation = (
            int(each[axis]) for each in (conv_layer.kernel_size, conv_layer.stride, conv_layer.dilation)
        )
        needed = kernel - 1 - (size - 1) % stride
        if kernel < stride:
            needed = torch.sym_max(needed, 0)
        # dilation counts in MobileNetV2 alone; MobileNetV1 has none
        padding += [needed // 2 * dilation, (needed - needed // 2) * dilation]
    return nn.functional.pad(features, padding, "constant", 0.0)


SAME_PADDING = TorchPatch(
    "same-padding",
    (
        "transformers.models.mobilenet_v1.modeling_mobilenet_v1:apply_tf_padding",
        "transformers.models.mobilenet_v2.modeling_mobilenet_v2:apply_tf_padding",
    ),
    _same_padding,
)
"""MobileNetV1 and V2 choose their padding with `if height % stride == 0`.

Without it, every exporter keeps the branch of the example: the graph runs at all sizes, and is
silently wrong wherever a stage has an odd height or width where the example's was even.
"""
