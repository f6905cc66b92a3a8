"""What scales and shifts the channels of a convolution becomes part of its weights.

    before   Mul(Conv(x, W, b), s)     after   Conv(x, s·W, s·b)      s: one number, or one for each channel
    before   BatchNormalization(Conv(x, W, b), γ, β, μ, σ²)           s = γ / √(σ² + ε)
                                       after   Conv(x, s·W, s·(b - μ) + β)

Why it is faster: eight bits go on to the sum that follows, as in the scaled residuals of Inception-ResNet,
where a product in float lay between. In float32 ONNX Runtime does the same by itself.

Numbers: the same, but for rounding.

Source: Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", section 3.3, has such scales; Jacob et al. 2018, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", section 3.2, folds batch normalization so.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infer.optimizer.rewriting import constant, maker, only_user, take_place, weight
from infer.signature import Array


def fold_scales(model: ir.Model) -> None:
    """In place. What comes out keeps its name, and so its values."""
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in ("Mul", "BatchNormalization"):
            continue
        sources = node.inputs if node.op_type == "Mul" else node.inputs[:1]
        convolution = next((found for value in sources if (found := maker(value, "Conv"))), None)
        if convolution is None or only_user(convolution.outputs[0]) is not node:
            continue
        weights = [constant(value) for value in convolution.inputs[1:] if value is not None]
        if any(each is None or each.dtype != np.float32 for each in weights):
            continue
        if (of_node := _scale_and_shift(node, convolution, weights[0])) is None:
            continue
        _fold(model.graph, convolution, *of_node)
        take_place(node.outputs[0], convolution.outputs[0])
        model.graph.remove(node, safe=True)


def _scale_and_shift(
    node: ir.Node, convolution: ir.Node, weights: Array | None
) -> tuple[Array, Array | None] | None:
    """What the node multiplies and adds for each channel, in float64; None if it does something else."""
    assert weights is not None
    channels = len(weights)
    if node.op_type == "BatchNormalization":
        values = [constant(value) for value in node.inputs[1:]]
        if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
            return None
        if any(each is None or each.shape != (channels,) for each in values):
            return None
        gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in values)
        factors = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return factors, beta - factors * mean
    scale = next(
        (c for v in node.inputs if v is not convolution.outputs[0] and (c := constant(v)) is not None), None
    )
    if scale is None or scale.ndim > weights.ndim:  # the product would have more dims than the convolution
        return None
    shape = (*[1] * (weights.ndim - scale.ndim), *scale.shape)
    if scale.size != 1 and shape != (1, channels, *[1] * (weights.ndim - 2)):
        return None
    return np.broadcast_to(scale.reshape(-1).astype(np.float64), channels), None


def _fold(graph: ir.Graph, convolution: ir.Node, factors: Array, shift: Array | None) -> None:
    weights = constant(convolution.inputs[1])
    bias = constant(convolution.inputs[2]) if len(convolution.inputs) > 2 else None
    assert weights is not None
    scaled = weights * factors.reshape(-1, *[1] * (weights.ndim - 1))
    name = f"{convolution.name}_scaled"
    convolution.replace_input_with(1, weight(graph, name, scaled.astype(np.float32)))
    if bias is None and shift is None:
        return
    moved = (0.0 if bias is None else bias * factors) + (0.0 if shift is None else shift)
    if len(convolution.inputs) < 3:
        convolution.resize_inputs(3)
    convolution.replace_input_with(2, weight(graph, f"{name}_bias", np.asarray(moved, np.float32)))
