"""A residual sum and the LayerNormalization after it, as one node.

    before   y = LayerNormalization(a + b (+ bias))     after   y, sum = SkipLayerNormalization(a, b, bias)

Why it is faster: the sum is normalized while it is in the cache, and one node is cheaper than two or three.
Where the kernel is slower than what it replaces, as it was seen to be on long rows, measurement drops it.

Numbers: the same sums in another order, 1e-7 of the scale.

Source: `com.microsoft.SkipLayerNormalization`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.rewriting import CONTRIB, constant, maker, only_user, put, rank, take_place, tidy


def skip_norm(model: ir.Model) -> PassResult:
    """Rewrite every LayerNormalization of a sum of two tensors of one shape."""
    result = PassResult()
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "LayerNormalization":
            continue
        added = maker(node.inputs[0], "Add")
        if added is None or any(constant(tensor) is not None for tensor in added.inputs):
            continue
        result.found += 1
        if reason := _unfit(node, added):
            result.decline(reason)
            continue
        _fuse(model, node, added)
        result.rewritten += 1
    tidy(model)
    return result


def _unfit(node: ir.Node, added: ir.Node) -> str | None:
    first, second = added.inputs
    assert first is not None
    assert second is not None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its mean or deviation is used elsewhere"
    if node.attributes.get_int("axis", -1) not in (-1, (rank(first) or 0) - 1):
        return "it normalizes over several axes"
    if rank(first) != 3 or rank(second) != 3:
        return "its inputs are not known to have three dims"
    if first.shape != second.shape:
        return "the two parts of the sum differ in shape"
    if first.dtype != ir.DataType.FLOAT:
        return f"its type is {first.dtype}"
    given = [constant(tensor) for tensor in node.inputs[1:]]
    if any(array is None for array in given):
        return "its scale is not a constant"
    width = first.shape[-1] if first.shape is not None else None
    if any(array is not None and array.shape != (width,) for array in given):
        return "its scale or offset is not one number for each place of the last dim"
    return None


def _fuse(model: ir.Model, node: ir.Node, added: ir.Node) -> None:
    first, second = added.inputs
    bias, scale = None, constant(node.inputs[1])
    assert scale is not None
    for one, other in ((first, second), (second, first)):
        biased = maker(one, "Add")
        if biased is None or one is None or only_user(one, "Add") is not added:
            continue
        for inner, constant_part in (biased.inputs, reversed(biased.inputs)):
            found = constant(constant_part)
            if found is not None and found.shape == scale.shape and found.dtype == np.float32:
                first, second, bias = inner, other, constant_part
        if bias is not None:
            break
    shift = node.inputs[2] if len(node.inputs) > 2 else None
    fused = ir.node(
        "SkipLayerNormalization",
        [first, second, node.inputs[1], shift, bias],
        {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        domain=CONTRIB,
        num_outputs=4,
    )
    model.opset_imports[CONTRIB] = 1
    put(node, [fused])
    take_place(node.outputs[0], fused.outputs[0])
    total = added.outputs[0]
    others = {use.node for use in total.uses()} - {node}
    if others and not total.is_graph_output() and all(_after(model.graph, fused, user) for user in others):
        take_place(total, fused.outputs[3])
    for output in fused.outputs[1:]:
        if not output.uses():
            output.name = ""  # an output with a name would be computed


def _after(graph: ir.Graph, node: ir.Node, other: ir.Node) -> bool:
    for each in graph:
        if each is node:
            return True
        if each is other:
            return False
    return False
