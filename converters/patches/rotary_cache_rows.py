"""rotary-cache-rows: the caches of RotaryEmbedding get as many rows as its input."""

from __future__ import annotations

import onnx_ir as ir


def rotary_cache_rows(model: ir.Model) -> bool:
    """RotaryEmbedding's cos and sin caches get as many rows as its input.

    The operator (onnx.ai/onnx/operators/onnx__RotaryEmbedding.html) wants caches of shape
    (batch, sequence, size/2) when no position ids come. The dynamo exporter hands over what the
    model computed, usually (1, sequence, size/2), and ONNX Runtime then refuses batches > 1.

        RotaryEmbedding(x, cos, sin)  ->  RotaryEmbedding(x, Expand(cos, rows), Expand(sin, rows))
    """
    changed = False
    expanded: dict[tuple[int, int], ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        if node.op_type != "RotaryEmbedding" or node.domain not in ("", "ai.onnx"):
            continue
        x, *caches = node.inputs[:3]
        if x is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
            continue
        for index, cache in enumerate(caches, start=1):
            if cache is None or _has_rows_of(cache, x):
                continue
            # most models share one cache among all layers, and its rows too
            key = id(cache), id(node.graph)
            if key not in expanded:
                expanded[key] = _expand(node, cache, x)
            node.replace_input_with(index, expanded[key])
            changed = True
    return changed


def _has_rows_of(cache: ir.Value, x: ir.Value) -> bool:
    # exporters leave the shape of the halved caches unknown, in which case Expand does no harm
    return cache.shape is not None and x.shape is not None and cache.shape[0] == x.shape[0]


def _expand(node: ir.Node, cache: ir.Value, x: ir.Value) -> ir.Value:
    one = ir.node("Constant", inputs=[], attributes={"value_ints": [1, 1]})
    batch = ir.node("Shape", inputs=[x], attributes={"start": 0, "end": 1})
    rows = ir.node("Concat", inputs=[batch.outputs[0], one.outputs[0]], attributes={"axis": 0})
    expand = ir.node("Expand", inputs=[cache, rows.outputs[0]])
    assert node.graph is not None
    for new in (one, batch, rows, expand):
        node.graph.insert_before(node, new)
    return expand.outputs[0]
