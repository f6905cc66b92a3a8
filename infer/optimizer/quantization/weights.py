"""Float weights as int8: one scale a channel, symmetric.

Multiplying u8 by s8 on AVX2 without VNNI adds two products in 16 bits (`vpmaddubsw`), which saturate
beyond 32,767: |255·w₁ + 255·w₂| ≤ 32,767 needs |w₁| + |w₂| ≤ 128. `pair_bounded` chooses scales for which
no two weights of a channel exceed that, so that no order of summation and no activation can saturate. It
costs half a bit to one bit of the channels whose two largest weights are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from infer.optimizer.rewriting import CONTRIB, constant
from infer.signature import Array

_LARGEST = 127
_LARGEST_PAIR = 128
U8 = 255


@dataclass(frozen=True)
class Quantized:
    """`values`, int8, and a scale for each channel, float32: weight ≈ values · scale."""

    values: Array
    scale: Array


def quantize_weight(weight: Array, axis: int, *, pair_bounded: bool) -> Quantized:
    """Channels lie along `axis`. A channel of zeros gets the scale 1."""
    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0).reshape(weight.shape[axis], -1)
    magnitudes = np.abs(rows)
    scale = magnitudes.max(axis=1) / _LARGEST
    if pair_bounded and rows.shape[1] > 1:
        two = np.partition(magnitudes, -2, axis=1)[:, -2:].sum(axis=1)
        # rounding moves each by up to half a step
        scale = np.maximum(scale, two / (_LARGEST_PAIR - 1))
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    values = np.clip(np.rint(weight / scale.reshape(shape)), -_LARGEST, _LARGEST).astype(np.int8)
    return Quantized(values, scale)


def may_saturate(values: Array, axis: int, largest_activation: int = U8) -> int:
    """In how many channels two int8 weights exist whose products with `largest_activation` overflow 16
    bits: on AVX2 without VNNI their sums may be wrong, on other processors they are exact."""
    rows = np.abs(np.moveaxis(np.asarray(values, np.int64), axis, 0).reshape(values.shape[axis], -1))
    if rows.shape[1] < 2:
        return 0
    two = np.partition(rows, -2, axis=1)[:, -2:].sum(axis=1)
    return int((two * largest_activation > np.iinfo(np.int16).max).sum())


_INT8_WEIGHTS = {
    ("", "MatMulInteger"): ((1, 1),),
    ("", "DequantizeLinear"): ((0, 1),),
    (CONTRIB, "DynamicQuantizeLSTM"): ((1, 1), (2, 1)),
}
"""Operator → which inputs are int8 weights, and the axis of their channels (of each direction)."""


def channels_that_may_saturate(model: ir.Model) -> int:
    """Of all int8 weights of a quantized graph."""
    found = 0
    for node in model.graph:
        for place, axis in _INT8_WEIGHTS.get((node.domain, node.op_type), ()):
            values = constant(node.inputs[place])
            if values is None or values.dtype != np.int8 or values.ndim < 2:
                continue
            if node.op_type == "DynamicQuantizeLSTM":
                found += sum(may_saturate(direction, axis) for direction in values)
            else:
                found += may_saturate(values, node.attributes.get_int("axis", axis))
    return found
