"""Attention that exporters wrote out, found again.

    MatMul(Softmax(MatMul(q · a, kᵀ · b) · c + mask), v)

as torch writes it below opset 23, from its dynamo exporter (which also replaces NaN of rows that forbid
everything) and from TorchScript, and as models write it themselves. `a`, `b` and `c` are constants, and any
of them, and the mask, may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from infer.optimizer.rewriting import constant, maker, only_user, put, rank

HEADS_BEFORE_ROWS = (0, 2, 1, 3)
_LAST_TWO = (0, 1, 3, 2)
_KEYS_OF_ROWS = (0, 2, 3, 1)
"""From [batch, rows, heads, size] straight to keys on their side."""


@dataclass(frozen=True)
class Attended:
    """An attention in a graph.

    Attributes:
        node: gives its answer, as its first output.
        query, key, value: shape = (batch, heads, rows, size).
        mask: what is allowed, or what is added to the scores.
        problem: why no kernel can take it, "" if nothing is known against it.
    """

    node: ir.Node
    query: ir.Value | None
    key: ir.Value | None
    value: ir.Value | None
    mask: ir.Value | None
    scale: float
    causal: bool = False
    problem: str = ""


def spelled_out(node: ir.Node) -> Attended | None:
    """The attention that ends with this node, if one does."""
    if node.domain != "" or node.op_type != "MatMul":
        return None
    softmax = maker(_before_nan(node.inputs[0]), "Softmax")
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores, mask = softmax.inputs[0], None
    added = maker(scores, "Add")
    if added is not None:
        scores, mask = added.inputs
        if maker(_unscaled(scores)[0], "MatMul") is None:
            scores, mask = mask, scores
    product, outer = _unscaled(scores)
    matmul = maker(product, "MatMul")
    if matmul is None or rank(softmax.inputs[0]) not in (None, 4):
        return None
    query, ours = _unscaled(matmul.inputs[0])
    turned, theirs = _unscaled(matmul.inputs[1])
    key = _turned_back(node, turned)
    if key is None or constant(node.inputs[1]) is not None:
        return None
    problem = ""
    if only_user(softmax.outputs[0]) is None and _before_nan(node.inputs[0]) is node.inputs[0]:
        problem = "its scores, or its keys and values, are used elsewhere"
    return Attended(node, query, key, node.inputs[1], mask, scale=outer * ours * theirs, problem=problem)


def _before_nan(value: ir.Value | None) -> ir.Value | None:
    """What `Where(IsNaN(x), 0, x)` is about."""
    chosen = maker(value, "Where")
    if chosen is None:
        return value
    asked = maker(chosen.inputs[0], "IsNaN")
    if asked is None or asked.inputs[0] is not chosen.inputs[2]:
        return value
    instead = constant(chosen.inputs[1])
    return chosen.inputs[2] if instead is not None and not instead.any() else value


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A product or quotient with one number, as that and the number."""
    node = maker(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    for place in (1, 0) if node.op_type == "Mul" else (1,):
        found = constant(node.inputs[place])
        if found is not None and found.size == 1:
            number = float(found.reshape(()))
            return node.inputs[1 - place], number if node.op_type == "Mul" else 1.0 / number
    return value, 1.0


def _turned_back(node: ir.Node, turned: ir.Value | None) -> ir.Value | None:
    """Keys, shape = (batch, heads, rows, size), of those on their side; None if they are not."""
    transposed = maker(turned, "Transpose")
    if transposed is not None:
        order = permutation(transposed)
        if order == _LAST_TWO:
            return transposed.inputs[0]
        if order == _KEYS_OF_ROWS and transposed.inputs[0] is not None:
            rows = transposed.inputs[0]
            back = ir.node("Transpose", [rows], {"perm": HEADS_BEFORE_ROWS})
            put(node, [back])
            back.outputs[0].type = rows.type
            if rows.shape is not None and len(rows.shape) == 4:
                back.outputs[0].shape = ir.Shape([rows.shape[axis] for axis in HEADS_BEFORE_ROWS])
            return back.outputs[0]
        return None
    # through three dims: Reshape, Transpose of the last two, Reshape
    restored = maker(turned, "Reshape")
    inner = maker(restored.inputs[0], "Transpose") if restored is not None else None
    flat = maker(inner.inputs[0], "Reshape") if inner is not None else None
    if inner is None or flat is None or permutation(inner) != (0, 2, 1):
        return None
    key = flat.inputs[0]
    return key if rank(key) == 4 else None


def permutation(node: ir.Node) -> tuple[int, ...]:
    """How a Transpose orders its axes, () if it reverses them."""
    found = node.attributes.get("perm")
    return tuple(found.as_ints()) if found is not None else ()
