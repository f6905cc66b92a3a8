"""Float weights as int8: one scale a channel, symmetric.

Where two products add up in 16 bits (see `saturation`), |255·w₁ + 255·w₂| ≤ 32,767 needs |w₁| + |w₂| ≤ 128.
`pair_bounded` chooses scales for which no two weights of a channel exceed that, so that no order of
summation and no activation can saturate. It costs half a bit to one bit of the channels whose two largest
weights are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infer.signature import Array

_LARGEST = 127
_LARGEST_PAIR = 128
U8 = 255


@dataclass(frozen=True)
class Quantized:
    """`values`, int8, and a scale for each channel, float32: weight ≈ values · scale."""

    values: Array
    scale: Array


def quantize_weight(
    weight: Array, axis: int, *, pair_bounded: bool, least: Array | None = None
) -> Quantized:
    """Channels lie along `axis`. No scale is less than its channel's in `least`; where that is 0 or not
    given, a channel of zeros gets the scale 1."""
    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0).reshape(weight.shape[axis], -1)
    magnitudes = np.abs(rows)
    scale = magnitudes.max(axis=1) / _LARGEST
    if pair_bounded and rows.shape[1] > 1:
        two = np.partition(magnitudes, -2, axis=1)[:, -2:].sum(axis=1)
        # rounding moves each by up to half a step
        scale = np.maximum(scale, two / (_LARGEST_PAIR - 1))
    if least is not None:
        scale = np.maximum(scale, least)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.clip(np.rint(weight / scale.reshape(shape)), -_LARGEST, _LARGEST).astype(np.int8)
    return Quantized(values, scale)
