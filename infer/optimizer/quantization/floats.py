"""Half precision, weights and what is computed, where a device has kernels for it.

    before   MatMul(x, W)     after   Cast(MatMul(Cast(x), W16)), and no Cast between two such nodes

Why it is faster: half the memory to move, and products on the units that GPUs have for them. CPUs have few
kernels for it, and ONNX Runtime casts back and forth around the others.

Numbers: eleven bits of each number; what exceeds 65,504 becomes infinite, and a search finds the nodes that
must stay in float32. Inputs and outputs keep their types.

Source: `onnxruntime.transformers.float16`, which rewrites the graph and leaves in float32 what has no
kernels; IEEE 754 binary16.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.rewriting import CONTRIB

_KINDS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "MultiHeadAttention", "LSTM", "GRU"}
)
_MOST_BYTES = 2**31 - 2**20
"""Types are inferred from a message of protobuf, which can be no larger."""


def candidates(model: ir.Model) -> list[ir.Node]:
    """The nodes that take the time."""
    return [n for n in model.graph if n.domain in ("", CONTRIB) and n.op_type in _KINDS]


def in_half_precision(model: ir.Model, keep: Collection[str]) -> PassResult:
    """Compute all but the nodes of these names in float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # only where there is a GPU

    result = PassResult()
    for node in candidates(model):
        result.found += 1
        if node.name in keep:
            result.decline("kept in float for accuracy")
        else:
            result.rewritten += 1
    weights = [value.const_value for value in model.graph.initializers.values()]
    if sum(tensor.nbytes for tensor in weights if tensor is not None) > _MOST_BYTES:
        refused = PassResult(result.found)
        refused.decline("its weights exceed 2 GiB")
        return refused
    proto = convert_float_to_float16(
        ir.serde.serialize_model(model), keep_io_types=True, node_block_list=list(keep)
    )
    model.graph = ir.serde.deserialize_model(proto).graph
    return result
