"""Dynamic int8 of recurrent layers: weights once, inputs and states of each step by their own range.

    before   LSTM(x, W, R, b, …)     after   DynamicQuantizeLSTM(x, W8, R8, b, …)

Why it is faster: a step multiplies one row by all recurrent weights, which are a quarter of the bytes to
read; and int8 products are faster (see `dynamic`).

Numbers: one scale for a step's states, all rows of a batch among them, so an answer depends on its
neighbours. Errors of a step are in the state of the next.

Source: ONNX Runtime, `com.microsoft.DynamicQuantizeLSTM`. It has none for GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.quantization.dynamic import LEAST_WEIGHTS
from infer.optimizer.quantization.weights import quantize_weight
from infer.optimizer.rewriting import CONTRIB, constant, put, take_place, tidy, weight
from infer.signature import Array

_INPUTS = 8
"""Of LSTM: x, W, R, bias, lengths, first states, and peepholes."""


def candidates(model: ir.Model) -> list[ir.Node]:
    """The layers that could be quantized: LSTM of float32 weights, with sequences before rows."""
    return [node for node in model.graph if _fits(node)]


def quantize_recurrent(model: ir.Model, keep: Collection[str] = (), *, pair_bounded: bool) -> PassResult:
    """Quantize every layer but those whose nodes are called as `keep` says."""
    result = PassResult()
    for node in candidates(model):
        result.found += 1
        if node.name in keep:
            result.decline("kept in float for accuracy")
            continue
        _quantize(model.graph, node, pair_bounded)
        result.rewritten += 1
    if result.rewritten:
        model.opset_imports[CONTRIB] = 1
    tidy(model)
    return result


def _fits(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "LSTM" or node.attributes.get_int("layout", 0) != 0:
        return False
    found = [constant(value) for value in node.inputs[1:3]]
    return all(
        array is not None and array.dtype == np.float32 and array.size >= LEAST_WEIGHTS for array in found
    )


def _quantize(graph: ir.Graph, node: ir.Node, pair_bounded: bool) -> None:
    floats = [constant(value) for value in node.inputs[1:3]]
    matrices, steps = [], []
    for name, array in zip(("W", "R"), floats, strict=True):
        assert array is not None
        values, scale = _by_direction(array, pair_bounded)
        matrices.append(weight(graph, f"{node.name}_{name}_int8", values))
        steps.append(weight(graph, f"{node.name}_{name}_scale", scale))
        steps.append(weight(graph, f"{node.name}_{name}_zero", np.zeros(scale.shape, np.int8)))
    others = [*node.inputs[3:], *[None] * (_INPUTS - len(node.inputs))]
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]
    layer = ir.node(
        "DynamicQuantizeLSTM",
        [node.inputs[0], *matrices, *others, *steps],
        domain=CONTRIB,
        name=f"{node.name}_int8",
        num_outputs=len(node.outputs),
    )
    layer.attributes.update({attribute.name: attribute for attribute in attributes})
    put(node, [layer])
    for before, after in zip(node.outputs, layer.outputs, strict=True):
        if before.name:
            take_place(before, after)
        else:
            after.name = ""


def _by_direction(matrix: Array, pair_bounded: bool) -> tuple[Array, Array]:
    """Of shape (directions, outputs, inputs): values of shape (directions, inputs, outputs), and scales of
    shape (directions, outputs)."""
    each = [quantize_weight(one, 0, pair_bounded=pair_bounded) for one in matrix]
    values = np.stack([quantized.values.T for quantized in each])
    return values, np.stack([quantized.scale for quantized in each])
