"""Attention that exporters wrote out, found again.

    MatMul(Softmax(MatMul(q · a, kᵀ · b) · c + bias + …), v)

as torch writes it below opset 23, from its dynamo exporter (which also replaces NaN of rows that forbid
everything) and from TorchScript, and as models write it themselves: with positions and masks as several
sums, or scores replaced where a mask forbids. `a`, `b` and `c` are constants, and any may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from infer.optimizer.rewriting import constant, maker, only_user, put, rank

HEADS_BEFORE_ROWS = (0, 2, 1, 3)
_LAST_TWO = (0, 1, 3, 2)
_KEYS_OF_ROWS = (0, 2, 3, 1)
"""From [batch, rows, heads, size] straight to keys on their side."""

_MOVES = ("Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze")
_ENDS = frozenset({"MatMul", "Gemm", "Einsum", "Conv", "Softmax", "LayerNormalization", "Shape"})
"""Where a way back from a softmax ends."""

_UNKNOWN = (
    "its keys are not turned in a known way, or the kernels lack what is between its product and its"
    " softmax"
)

_LAST_SINCE = 13
"""The opset from which a Softmax that names no axis is over the last one; before, it is over the second."""

_FORBIDS = -1e4
"""A score that is replaced by less than that is as good as none."""


@dataclass(frozen=True)
class Attended:
    """An attention in a graph.

    Attributes:
        node: gives its answer, as its first output.
        query, key, value: shape = (batch, heads, rows, size).
        masks: each says what is allowed, or is added to the scores.
        problem: why no kernel can take it, "" if nothing is known against it.
    """

    node: ir.Node
    query: ir.Value | None
    key: ir.Value | None
    value: ir.Value | None
    masks: tuple[ir.Value, ...]
    scale: float
    causal: bool = False
    problem: str = ""


def spelled_out(node: ir.Node) -> Attended | None:
    """The attention that ends with this node, if one does; one in another form has that as its problem."""
    return _known(node) or _in_another_form(node)


def _known(node: ir.Node) -> Attended | None:
    if node.domain != "" or node.op_type != "MatMul":
        return None
    softmax = maker(_before_nan(node.inputs[0]), "Softmax")
    if softmax is None or not _over_last(softmax):
        return None
    scores = softmax.inputs[0]
    found = None if scores is None or rank(scores) not in (None, 4) else _scores(scores)
    if found is None or constant(node.inputs[1]) is not None:
        return None
    matmul, outer, added = found
    query, ours = _unscaled(matmul.inputs[0])
    turned, theirs = _unscaled(matmul.inputs[1])
    key = _turned_back(node, turned)
    if key is None:
        return None
    masks = tuple(value if isinstance(value, ir.Value) else _forbidding(node, value) for value in added)
    problem = ""
    if only_user(softmax.outputs[0]) is None and _before_nan(node.inputs[0]) is node.inputs[0]:
        problem = "its scores, or its keys and values, are used elsewhere"
    return Attended(node, query, key, node.inputs[1], masks, scale=outer * ours * theirs, problem=problem)


def _in_another_form(node: ir.Node) -> Attended | None:
    """A softmax whose result is multiplied with something that is computed, too, as the census counts
    them."""
    if node.domain != "" or node.op_type not in ("MatMul", "Einsum"):
        return None
    if any(value is None or constant(value) is not None for value in node.inputs):
        return None
    value, reshaped = _before_nan(node.inputs[0]), False
    while (moved := maker(value, *_MOVES)) is not None:
        value, reshaped = moved.inputs[0], reshaped or moved.op_type == "Reshape"
    softmax = maker(value, "Softmax")
    if softmax is None or not _over_last(softmax):
        return None
    between = _to_product(softmax.inputs[0])
    if node.op_type == "Einsum":
        problem = "it is written with Einsum"
    elif between is None:
        problem = "no product of queries and keys is behind its softmax"
    elif reshaped or rank(softmax.inputs[0]) == 3:
        problem = "its heads lie in the batch, in three dims"
    else:
        listed = ", ".join(dict.fromkeys(between)) or "nothing"
        problem = f"{_UNKNOWN}: {listed}"
    return Attended(node, None, None, None, (), 1.0, problem=problem)


def _over_last(softmax: ir.Node) -> bool:
    """Whether it is over the last of four dims."""
    graph = softmax.graph
    opset = graph.opset_imports.get("", 0) if isinstance(graph, ir.Graph) else 0
    return softmax.attributes.get_int("axis", -1 if opset >= _LAST_SINCE else 1) in (-1, 3)


def _to_product(value: ir.Value | None, most: int = 12) -> list[str] | None:
    """The operators on the shortest way from a product of two computed tensors to `value`; None if there is
    no such product within `most` steps."""
    waiting: list[tuple[ir.Value | None, list[str]]] = [(value, [])]
    while waiting:
        here, way = waiting.pop(0)
        node = None if here is None else here.producer()
        if node is None or len(way) > most:
            continue
        if node.op_type in ("MatMul", "Einsum") and all(constant(each) is None for each in node.inputs):
            return way
        if node.op_type not in _ENDS:
            waiting += [(each, [node.op_type, *way]) for each in node.inputs]
    return None


@dataclass(frozen=True)
class _Forbidden:
    """Scores are replaced by a low number where `where` holds, or where it does not."""

    where: ir.Value
    holds: bool


_Added = list["ir.Value | _Forbidden"]


def _scores(value: ir.Value) -> tuple[ir.Node, float, _Added] | None:
    """The product of queries and keys, the number it is multiplied with, and what is added to that."""
    product, scale = _unscaled(value)
    matmul = maker(product, "MatMul")
    if matmul is not None:
        return (matmul, scale, []) if _is_turned(_unscaled(matmul.inputs[1])[0]) else None
    if (summed := maker(value, "Add")) is not None:
        for side, other in (summed.inputs, summed.inputs[::-1]):
            found = None if side is None else _scores(side)
            if found is not None and other is not None:
                matmul, scale, added = found
                return matmul, scale, [*added, other]
    if (chosen := maker(value, "Where")) is not None:
        where, *sides = chosen.inputs
        for side, instead, holds in ((sides[1], sides[0], True), (sides[0], sides[1], False)):
            low = constant(instead)
            if low is None or low.size != 1 or float(low.reshape(())) > _FORBIDS or side is None:
                continue
            found = _scores(side)
            if found is not None and where is not None:
                matmul, scale, added = found
                return matmul, scale, [*added, _Forbidden(where, holds)]
    return None


def _forbidding(node: ir.Node, forbidden: _Forbidden) -> ir.Value:
    """A mask of what is allowed."""
    if not forbidden.holds:
        return forbidden.where
    allowed = ir.node("Not", [forbidden.where])
    put(node, [allowed])
    allowed.outputs[0].shape, allowed.outputs[0].type = forbidden.where.shape, forbidden.where.type
    return allowed.outputs[0]


def _is_turned(value: ir.Value | None) -> bool:
    return maker(value, "Transpose", "Reshape") is not None


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
