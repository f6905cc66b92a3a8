"""Products of int8 that overflow on x86 without VNNI.

There two products of u8 and s8 add up in 16 bits (`vpmaddubsw`), which saturate beyond 32,767. Which two
depends on the kernel, so any two of a channel count. Elsewhere sums have 32 bits, and are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from infer.feeds import Feeds
from infer.manifest import Saturation
from infer.optimizer.quantization.weights import U8
from infer.optimizer.rewriting import CONTRIB, constant, maker
from infer.optimizer.watching import watched
from infer.signature import Array

_LARGEST_SUM = np.iinfo(np.int16).max
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def saturation(model: ir.Model, feeds: Sequence[Feeds]) -> Saturation:
    """Of a quantized graph, asked with feeds of the calibration; what cannot be seen is taken to be as
    large as can be."""
    counted = {product: product.overflowing() for product in _products(model)}
    products = [product for product, count in counted.items() if count]
    axes = {product.input: product.axis for product in products if product.input is not None}
    largest: Mapping[ir.Value, Array] = {}
    if axes:
        with suppress(Exception):  # what it answers is not in question, nor what it was kept for
            largest = _largest(model, axes, feeds)
    reached = [None if p.input is None else largest.get(p.input) for p in products]
    seen = sum(p.overflowing(each) for p, each in zip(products, reached, strict=True))
    return Saturation(sum(counted.values()), seen, len(feeds) if products else 0)


@dataclass(frozen=True, eq=False)
class _Product:
    """Int8 weights, and the eight bits that they are multiplied with.

    Attributes:
        input: None if the graph does not show it.
        weights: shape (outputs, inputs of a group, what else is summed up).
        axis: of the input's channels.
        padding: what a convolution puts around its input, which stands for zero.
    """

    input: ir.Value | None
    weights: Array
    axis: int = -1
    groups: int = 1
    padding: int = 0

    def overflowing(self, largest: Array | None = None) -> int:
        """How many outputs can overflow, where no input exceeds the `largest` of its channel."""
        count, inputs, _ = self.weights.shape
        of_inputs = np.full(inputs * self.groups, U8) if largest is None else largest.clip(self.padding)
        of_group = of_inputs.reshape(self.groups, inputs).repeat(count // self.groups, axis=0)
        products = (np.abs(self.weights.astype(np.int64)) * of_group[:, :, None]).reshape(count, -1)
        if products.shape[1] < 2:
            return 0
        return int((np.partition(products, -2, axis=1)[:, -2:].sum(axis=1) > _LARGEST_SUM).sum())


def _products(model: ir.Model) -> Iterator[_Product]:
    for node in model.graph:
        if (node.domain, node.op_type) == (CONTRIB, "DynamicQuantizeLSTM"):
            for value in node.inputs[1:3]:
                if (directions := constant(value)) is not None:
                    yield from (_Product(None, _arranged(weights, 1)) for weights in directions)
        elif (node.domain, node.op_type) == ("", "MatMulInteger"):
            if (matrix := _int8(node.inputs[1])) is not None:
                yield _Product(node.inputs[0], _arranged(matrix, 1))
        elif node.domain == "" and node.op_type in _WEIGHTED:
            steps = maker(node.inputs[1], "DequantizeLinear")
            if steps is not None and (weights := _int8(steps.inputs[0])) is not None:
                given = maker(node.inputs[0], "DequantizeLinear")
                zero = None if given is None else constant(given.inputs[2])
                convolves = node.op_type.startswith("Conv")
                yield _Product(
                    None if given is None else given.inputs[0],
                    _arranged(weights, steps.attributes.get_int("axis", 1)),
                    1 if convolves else -1,
                    node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1,
                    int(zero) if convolves and zero is not None else 0,
                )


def _int8(value: ir.Value | None) -> Array | None:
    found = constant(value)
    return found if found is not None and found.dtype == np.int8 and found.ndim >= 2 else None


def _arranged(weights: Array, axis: int) -> Array:
    """With the outputs, which lie along `axis`, first, and all behind the inputs in one."""
    outputs_first = np.moveaxis(weights, axis, 0)
    return outputs_first.reshape(*outputs_first.shape[:2], -1)


def _largest(
    model: ir.Model, axes: Mapping[ir.Value, int], feeds: Sequence[Feeds]
) -> Mapping[ir.Value, Array]:
    """What each channel of these tensors of u8, which lies along its axis, reaches on all feeds."""
    found: dict[ir.Value, Array] = {}
    for value in axes:
        value.type = ir.TensorType(ir.DataType.UINT8)  # which one that a pass has made may not say
    with watched(model, [value.name or "" for value in axes]) as inside:
        for each in feeds:
            outputs = inside.run(each)
            for value, axis in axes.items():
                array = np.moveaxis(outputs[value.name or ""], axis, 0)
                reached = array.reshape(len(array), -1).max(axis=1, initial=0).astype(np.int64)
                found[value] = np.maximum(found.get(value, 0), reached)
    return found
