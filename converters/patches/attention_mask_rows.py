"""attention-mask-rows: the mask of Attention gets a row for each query."""

from __future__ import annotations

import onnx_ir as ir


def attention_mask_rows(model: ir.Model) -> bool:
    """Attention's mask gets a row for each query.

    The operator (onnx.ai/onnx/operators/onnx__Attention.html) takes any mask that broadcasts to
    (batch, heads, queries, keys). ONNX Runtime does not broadcast the queries and refuses
    (batch, 1, 1, keys): "inconsistent q_sequence_length (between attn_mask and Q)".

        Attention(q, k, v, mask)  ->  Attention(q, k, v, Expand(mask, (1, …, queries, 1)))
    """
    changed = False
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 4:
            continue
        q, mask = node.inputs[0], node.inputs[3]
        if q is None or q.shape is None or mask is None or mask.shape is None:
            continue
        if len(mask.shape) < 2 or mask.shape[-2] != 1 or q.shape[-2] == 1:
            continue
        queries = len(q.shape) - 2
        ones = [1] * (len(mask.shape) - 2)
        before = ir.node("Constant", inputs=[], attributes={"value_ints": ones}) if ones else None
        one = ir.node("Constant", inputs=[], attributes={"value_ints": [1]})
        count = ir.node("Shape", inputs=[q], attributes={"start": queries, "end": queries + 1})
        parts = [part for part in (before, count, one) if part is not None]
        shape = ir.node("Concat", inputs=[p.outputs[0] for p in parts], attributes={"axis": 0})
        expand = ir.node("Expand", inputs=[mask, shape.outputs[0]])
        assert node.graph is not None
        for new in (*parts, shape, expand):
            node.graph.insert_before(node, new)
        node.replace_input_with(3, expand.outputs[0])
        changed = True
    return changed
