"""Channels of activations evened out before they share one scale.

    before   MatMul(x, W)     after   MatMul(x · (1/s), diag(s) · W)      the same numbers in float

A few channels of a transformer's activations are many times larger than the others, and one scale for all
leaves those with a few steps. A part of the difference, alpha, is moved to the weights, which have a scale
for each column: s = max |x| ** alpha / max |w| ** (1 - alpha), for each channel. The multiplication costs
little beside the product.

Source: Xiao et al. 2023, "SmoothQuant", equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from infer.feeds import Feeds
from infer.optimizer.quantization.calibration import check_finite
from infer.optimizer.rewriting import constant, constant_or_turned, put, weight
from infer.optimizer.watching import watched
from infer.signature import Array

_LEAST = 1e-5


def channel_maxima(model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feeds]) -> dict[str, Array]:
    """The largest magnitude of each channel, which is the last axis, of each tensor.

    Raises `InputError` for values that are not finite.
    """
    found: dict[str, Array] = {}
    with watched(model, tensors) as inside:
        for number, each in enumerate(feeds):
            outputs = inside.run(each)
            for name in tensors:
                check_finite(outputs[name], name, number)
                values = np.abs(outputs[name])
                largest = values.reshape(-1, values.shape[-1]).max(axis=0, initial=0.0)
                found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


MaximaOf = Callable[[Sequence[str]], Mapping[str, Array]]
"""`channel_maxima` of the tensors of these names."""


def smooth(model: ir.Model, products: Sequence[ir.Node], maxima_of: MaximaOf, alpha: float) -> None:
    """Even out the inputs of these MatMul nodes, which have constant matrices. In place."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in products:
        # what is constant has no channels that differ from feed to feed
        if node.inputs[0] is not None and node.op_type == "MatMul" and constant(node.inputs[0]) is None:
            groups.setdefault(node.inputs[0], []).append(node)
    maxima = maxima_of([value.name or "" for value in groups])
    for value, nodes in groups.items():
        _smooth(model.graph, value, nodes, maxima, alpha)


def _smooth(
    graph: ir.Graph,
    value: ir.Value,
    nodes: Sequence[ir.Node],
    maxima: Mapping[str, Array],
    alpha: float,
) -> None:
    matrices = [matrix for node in nodes if (matrix := constant_or_turned(node.inputs[1])) is not None]
    of_weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    of_values = maxima[value.name or ""]
    of_values, of_weights = np.maximum(of_values, _LEAST), np.maximum(of_weights, _LEAST)
    factors = (of_values**alpha / of_weights ** (1 - alpha)).astype(np.float32)
    factors /= np.exp(np.mean(np.log(factors)))  # the size of the whole stays
    scaled = ir.node("Mul", [value, weight(graph, f"{value.name}_smoothing", 1 / factors)])
    put(nodes[0], [scaled])
    smoothed = scaled.outputs[0]
    smoothed.name = f"{value.name}_smoothed_{alpha:g}"
    smoothed.shape, smoothed.type = value.shape, value.type
    for node, matrix in zip(nodes, matrices, strict=True):
        node.replace_input_with(0, smoothed)
        name = f"{node.name}_smoothed"
        node.replace_input_with(1, weight(graph, name, (factors[:, None] * matrix).astype(np.float32)))
