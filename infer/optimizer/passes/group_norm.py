"""A group norm as an instance norm of its groups.

    before   y = GroupNormalization(x, scale, bias)
    after    y = Reshape(InstanceNormalization(Reshape(x, [N, groups, …]), 1, 0), Shape(x)) · scale + bias
             or InstanceNormalization(x, scale, bias), if each channel is a group

Why it is faster: ONNX Runtime has no kernel for GroupNormalization on CPUs and computes it with some twenty
nodes, each of which goes through all values; its kernel for InstanceNormalization goes through them three
times. Measured alone, on two threads: 0.10 of the time for [1, 512, 3199] in 512 groups, as in wav2vec 2.0,
0.47 to 0.59 for one group or 32.

Numbers: the same sums in another order, 1e-6 of the scale.

Source: ONNX `GroupNormalization` (opset 21), `InstanceNormalization`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.rewriting import constant, put, rank, small, take_place, tidy, weight

_BY_CHANNEL_SINCE = 21
"""The opset from which a group norm has a scale for each channel, not for each group."""


def group_norm(model: ir.Model) -> PassResult:
    """Rewrite every GroupNormalization."""
    result = PassResult()
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "GroupNormalization":
            continue
        result.found += 1
        if reason := _unfit(model, node):
            result.decline(reason)
            continue
        _rewrite(model.graph, node)
        result.rewritten += 1
    tidy(model)
    return result


def _unfit(model: ir.Model, node: ir.Node) -> str | None:
    value, *parameters = node.inputs
    assert value is not None
    if (model.opset_imports.get("") or 0) < _BY_CHANNEL_SINCE:
        return "before opset 21 its scale is that of a group"
    if value.dtype != ir.DataType.FLOAT:
        return f"its type is {value.dtype}"
    if any(constant(tensor) is None for tensor in parameters):
        return "its scale is not a constant"
    if (rank(value) or 0) < 3:
        return "its input is not known to have three dims or more"
    return None


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    value, scale, bias = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2])
    assert value is not None
    assert scale is not None
    assert bias is not None
    groups, epsilon = node.attributes.get_int("num_groups", 1), node.attributes.get_float("epsilon", 1e-5)
    if groups == scale.size:
        whole = ir.node("InstanceNormalization", node.inputs, {"epsilon": epsilon})
        put(node, [whole])
        take_place(node.outputs[0], whole.outputs[0])
        return
    grouped = small(graph, f"by_{groups}_groups", np.array([0, groups, -1], np.int64))
    ones = small(graph, f"ones_of_{groups}_groups", np.ones(groups, np.float32))
    zeros = small(graph, f"zeros_of_{groups}_groups", np.zeros(groups, np.float32))
    wide = (-1, *[1] * ((rank(value) or 0) - 2))
    shape = ir.node("Shape", [value])
    rows = ir.node("Reshape", [value, grouped])
    normed = ir.node("InstanceNormalization", [rows.outputs[0], ones, zeros], {"epsilon": epsilon})
    back = ir.node("Reshape", [normed.outputs[0], shape.outputs[0]])
    name = node.inputs[1].name if node.inputs[1] is not None else None
    scaled = ir.node("Mul", [back.outputs[0], weight(graph, f"{name}_wide", scale.reshape(wide))])
    moved = ir.node("Add", [scaled.outputs[0], weight(graph, f"{name}_bias_wide", bias.reshape(wide))])
    put(node, [shape, rows, normed, back, scaled, moved])
    take_place(node.outputs[0], moved.outputs[0])
