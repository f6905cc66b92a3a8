"""Weights of half precision in the file, computed with in float32.

    before   MatMul(x, W)     after   MatMul(x, Cast(W16))

Why it is smaller: two bytes a weight instead of four. The Cast is done once, while the graph is loaded, so
that it is as fast as before and takes as much memory.

Numbers: each weight is within 2^-11 of itself or 3e-8; tensors with any beyond 65,504 stay as they are.

Source: ONNX `Cast`; IEEE 754 binary16.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.rewriting import weight

_LEAST_WEIGHTS = 1024
_LARGEST = 65504.0


def halve(model: ir.Model) -> PassResult:
    """Store all large float32 weights in 16 bits."""
    result = PassResult()
    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST_WEIGHTS:
            continue
        result.found += 1
        array = tensor.numpy()
        if value.is_graph_output() or not np.abs(array).max() <= _LARGEST:
            result.decline("its values do not fit half precision")
            continue
        if any(usage.node.op_type == "MatMulNBits" for usage in value.uses()):
            # it packs scales while the graph is loaded, and answers wrongly if they are no weights by then
            result.decline("its kernel takes nothing that is computed")
            continue
        half = weight(graph, f"{value.name}_half", array.astype(np.float16))
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        whole = cast.outputs[0]
        whole.shape, whole.type = value.shape, value.type
        graph.insert_before(graph[0], [cast])
        ir.convenience.replace_all_uses_with(value, whole)
        graph.initializers.pop(value.name or "")
        result.rewritten += 1
    return result
