"""Named repairs of small constructs that exporters get wrong. One function each, one table.

A patch must say what is wrong without it. It changes only what it recognises, and parity at
all points decides whether the result stands.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

GraphPatch = Callable[[ir.Model], bool]
"""Changes the model in place; whether it did."""


def rotary_cache_rows(model: ir.Model) -> bool:
    """RotaryEmbedding's cos and sin caches get as many rows as its input.

    The operator (onnx.ai/onnx/operators/onnx__RotaryEmbedding.html) wants caches of shape
    (batch, sequence, size/2) when no position ids come. The dynamo exporter hands over what the
    model computed, usually (1, sequence, size/2), and ONNX Runtime then refuses batches > 1.

        RotaryEmbedding(x, cos, sin)  ->  RotaryEmbedding(x, Expand(cos, rows), Expand(sin, rows))
    """
    changed = False
    for node in list(model.graph.all_nodes()):
        if node.op_type != "RotaryEmbedding" or node.domain not in ("", "ai.onnx"):
            continue
        x, *caches = node.inputs[:3]
        if x is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
            continue
        for index, cache in enumerate(caches, start=1):
            if cache is None or cache.shape is None or cache.shape[0] != 1:
                continue
            one = ir.node("Constant", inputs=[], attributes={"value_ints": [1, 1]})
            batch = ir.node("Shape", inputs=[x], attributes={"start": 0, "end": 1})
            rows = ir.node("Concat", inputs=[batch.outputs[0], one.outputs[0]], attributes={"axis": 0})
            expand = ir.node("Expand", inputs=[cache, rows.outputs[0]])
            for new in (one, batch, rows, expand):
                assert node.graph is not None
                node.graph.insert_before(node, new)
            node.replace_input_with(index, expand.outputs[0])
            changed = True
    return changed


GRAPH_PATCHES: dict[str, GraphPatch] = {
    "rotary-cache-rows": rotary_cache_rows,
}
"""Applied to every exported graph, in this order."""


def apply_graph_patches(model: ir.Model) -> tuple[str, ...]:
    """Apply all patches in place; the names of those that changed something."""
    return tuple(name for name, patch in GRAPH_PATCHES.items() if patch(model))
