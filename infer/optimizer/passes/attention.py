"""Attention to the kernels of ONNX Runtime's CPU build.

    before   q, k, v = Transpose(Reshape(x·Wq + bq)), …      after   Attention(x, [Wq Wk Wv], [bq bk bv])
             Transpose(Reshape(Attention-23(q, k, v, mask)))           or MultiHeadAttention(q, k, v, mask)
             or, in the place of Attention-23, what `passes.spelled_out` finds

Why it is faster: one product of x with three times as many columns keeps the cores busier than three, the
heads are split by the kernel while it copies anyway, and neither Reshape nor Transpose is left. Measured on
MiniLM: 4 to 9 % of the whole. Where the three products do not share their input, only the Transposes go.

Numbers: the same products and sums in another order, 1e-7 of the scale. A mask of which it is known that
it forbids nothing is left out. Another boolean mask becomes a float one with a low number where it
forbids; rows that forbid everything are then uniform instead of NaN, as in PyTorch's own masks; where they
must be 0, there is `guarded_attention`.

Source: ONNX `Attention` (opset 23), `com.microsoft.Attention`, `com.microsoft.MultiHeadAttention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.passes.spelled_out import HEADS_BEFORE_ROWS, Attended, permutation, spelled_out
from infer.optimizer.rewriting import (
    CONTRIB,
    constant,
    dim_at,
    maker,
    only_user,
    put,
    rank,
    size_at,
    small,
    take_place,
    tidy,
    weight,
)
from infer.signature import Array

_SPREAD_SINCE, _GUARDED_SINCE = 15, 18
"""Opsets of Shape with a start, and of ReduceMax with axes as an input."""

_FORBIDDEN = float(np.finfo(np.float32).min) / 4
"""The lowest number of which four can be added."""


def attention(model: ir.Model) -> PassResult:
    """Rewrite every attention of the graph that the kernels can take."""
    return _rewrite(model, guarded=False)


def guarded_attention(model: ir.Model) -> PassResult:
    """The same for models whose masks forbid some rows everything, as windows beside padding do: PyTorch's
    attention gives 0 there, and the kernels give a mean, which is multiplied away."""
    return _rewrite(model, guarded=True)


def _rewrite(model: ir.Model, *, guarded: bool) -> PassResult:
    result = PassResult()
    for node in list(model.graph):
        found = by_operator(node) or spelled_out(node)
        if found is None:
            continue
        result.found += 1
        if reason := unfit(found) or _too_old(model, found, guarded):
            result.decline(reason)
            continue
        _lower(model, found, guarded)
        result.rewritten += 1
    tidy(model)
    return result


def by_operator(node: ir.Node) -> Attended | None:
    """The operator of opset 23."""
    if node.domain != "" or node.op_type != "Attention":
        return None
    query, key, value = node.inputs[:3]
    problem = ""
    if len(node.inputs) > 4 and any(tensor is not None for tensor in node.inputs[4:]):
        problem = "it carries keys and values from call to call"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        problem = "its scores, or its keys and values, are used elsewhere"
    if node.attributes.get_float("softcap", 0.0):
        problem = "its scores are capped"
    size = size_at(query, 3)
    return Attended(
        node,
        query,
        key,
        value,
        masks=tuple(mask for mask in node.inputs[3:4] if mask is not None and not _allows_all(mask)),
        scale=node.attributes.get_float("scale", 1.0 / float(np.sqrt(size or 1))),
        causal=bool(node.attributes.get_int("is_causal", 0)),
        problem=problem,
    )


def _allows_all(mask: ir.Value) -> bool:
    """Whether it is known to forbid nothing, as the masks that transformers exports for pictures."""
    spread = maker(mask, "Expand")
    found = constant(mask if spread is None else spread.inputs[0])
    return found is not None and found.dtype == np.bool_ and bool(found.all())


def unfit(found: Attended) -> str | None:
    """Why the kernels cannot take this one, or None."""
    query, key, value = found.query, found.key, found.value
    if found.problem:
        return found.problem
    if any(rank(tensor) != 4 for tensor in (query, key, value)):
        return "its inputs are not known to have the shape [batch, heads, rows, size]"
    if _heads(query) is None or size_at(query, 3) is None:
        return "the number of heads is not known"
    if _heads(query) != _heads(key):
        return "several heads of queries share one of keys"
    rows = dim_at(query, 2)
    if found.causal and (rows is None or rows != dim_at(key, 2)):
        # ONNX lets the first query see the first key, and the kernels let the last one see the last
        return "its queries and keys are not known to be as many, and a later key is forbidden"
    for mask in found.masks:
        if mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
            return f"its mask is of type {mask.dtype}"
        if (rank(mask) or 5) > 4:
            return "its mask is not known to have the shape [batch, heads, rows, columns]"
    return None


def _too_old(model: ir.Model, found: Attended, guarded: bool) -> str | None:
    """Why the operators that are put around the kernel do not fit the graph's opset, or None."""
    opset = model.opset_imports.get("", 0)
    if guarded and found.masks and (found.causal or any(_by_head(mask) for mask in found.masks)):
        return "which rows are forbidden everything is not told by its mask alone"
    if guarded and found.masks and opset < _GUARDED_SINCE:
        return f"rows that are forbidden everything need opset {_GUARDED_SINCE}, and the graph has {opset}"
    if opset < _SPREAD_SINCE and not all(_fits(found, mask) for mask in found.masks):
        return f"its mask is the same for all rows, which needs opset {_SPREAD_SINCE}"
    return None


def _by_head(mask: ir.Value) -> bool:
    """Whether a mask, not known to be the same for all heads, may be another for each."""
    return rank(mask) in (3, 4) and dim_at(mask, -3) != 1


def _fits(found: Attended, mask: ir.Value) -> bool:
    """Whether a mask has a row for each of the queries, and a column for each of the keys."""
    rows, columns = dim_at(found.query, 2), dim_at(found.key, 2)
    known = None not in (rows, columns) and rank(mask) == 4
    return known and (dim_at(mask, 2), dim_at(mask, 3)) == (rows, columns)


def _heads(tensor: ir.Value | None) -> int | None:
    """How many heads [batch, heads, rows, size] has: what is noted, or what the last axis was cut into."""
    noted, size = size_at(tensor, 1), size_at(tensor, 3)
    transposed = maker(tensor, "Transpose")
    split = maker(transposed.inputs[0], "Reshape") if transposed is not None else None
    if noted is not None or size is None or split is None or not _splits_last(split):
        return noted
    whole = size_at(split.inputs[0], 2)
    return None if whole is None else whole // size


def _lower(model: ir.Model, found: Attended, guarded: bool) -> None:
    graph, node = model.graph, found.node
    heads = _heads(found.query)
    assert heads is not None
    attributes: dict[str, int | float] = {"num_heads": heads, "scale": found.scale}
    if found.causal:
        attributes["unidirectional"] = 1
    bias = _bias(graph, found)
    inputs = (found.query, found.key, found.value)
    rows = [_rows(graph, node, tensor) for tensor in inputs if tensor is not None]
    if packed := _packed(rows):
        lowered = ir.node(
            "Attention",
            [
                packed.x,
                weight(graph, "packed_weight", packed.weight),
                weight(graph, "packed_bias", packed.bias),
                None,
                None,
                bias,
            ],
            {**attributes, "qkv_hidden_sizes": packed.sizes},
            domain=CONTRIB,
        )
    else:
        lowered = ir.node("MultiHeadAttention", [*rows, None, None, bias], attributes, domain=CONTRIB)
    model.opset_imports[CONTRIB] = 1
    put(node, [lowered])
    answer = lowered.outputs[0]
    if guarded and bias is not None:
        answer = _without_forbidden_rows(graph, node, answer, bias)
    _give_back(graph, node, answer, heads)


def _bias(graph: ir.Graph, found: Attended) -> ir.Value | None:
    """All masks as one tensor that is added to the scores, shape = (batch or 1, heads or 1, rows, columns);
    tidying makes one of those that several layers share."""
    if not found.masks:
        return None
    node, query, key = found.node, found.query, found.key
    whole: ir.Value | None = None
    for mask in found.masks:
        part = _as_numbers(graph, node, mask, alone=len(found.masks) == 1)
        if whole is None:
            whole = part
            continue
        added = ir.node("Add", [whole, part])
        put(node, [added])
        dims = _broadcast(whole, part)
        whole = added.outputs[0]
        whole.shape, whole.type = ir.Shape(dims), ir.TensorType(ir.DataType.FLOAT)
    assert whole is not None
    if _fits(found, whole):
        return whole
    # the kernels want a row of it for each of the queries
    ones = small(graph, "one_axis", np.array([1]))
    lengths = [ir.node("Shape", [each], {"start": 2, "end": 3}) for each in (query, key)]
    shape = ir.node("Concat", [ones, ones, *(each.outputs[0] for each in lengths)], {"axis": 0})
    spread = ir.node("Expand", [whole, shape.outputs[0]])
    put(node, [*lengths, shape, spread])
    return spread.outputs[0]


def _broadcast(a: ir.Value, b: ir.Value) -> list[int | str | None]:
    """The dims of a sum of two tensors of up to four."""
    found: list[int | str | None] = []
    for axis in range(-max(rank(a) or 0, rank(b) or 0), 0):
        ours = dim_at(a, axis) if -axis <= (rank(a) or 0) else 1
        theirs = dim_at(b, axis) if -axis <= (rank(b) or 0) else 1
        found.append(theirs if ours == 1 else ours)
    return found


def _as_numbers(graph: ir.Graph, node: ir.Node, mask: ir.Value, *, alone: bool) -> ir.Value:
    """A mask as what is added to the scores.

    Minus infinity becomes a low number: a kernel that meets a row of nothing else gives NaN.
    """
    if mask.dtype == ir.DataType.FLOAT:
        chosen = maker(mask, "Where")
        if chosen is None or not _allows(chosen) or chosen.inputs[0] is None:
            return _finite(graph, node, mask, alone=alone)
        mask = chosen.inputs[0]
    allowed = small(graph, "mask_allows", np.array(0, np.float32))
    forbidden = small(graph, "mask_forbids", np.array(_FORBIDDEN, np.float32))
    where = ir.node("Where", [mask, allowed, forbidden])
    put(node, [where])
    where.outputs[0].shape, where.outputs[0].type = mask.shape, ir.TensorType(ir.DataType.FLOAT)
    return where.outputs[0]


def _finite(graph: ir.Graph, node: ir.Node, numbers: ir.Value, *, alone: bool) -> ir.Value:
    """Numbers that are added to the scores, so that their sum with others is finite, too."""
    chosen = maker(numbers, "Where")
    known = [constant(value) for value in (chosen.inputs[1:] if chosen is not None else [numbers])]
    least = float(np.finfo(np.float32).min) if alone else _FORBIDDEN
    if all(part is not None and (part >= least).all() for part in known):
        return numbers
    floor = small(graph, "mask_floor", np.array(_FORBIDDEN, np.float32))
    highest = ir.node("Max", [numbers, floor])
    put(node, [highest])
    highest.outputs[0].shape, highest.outputs[0].type = numbers.shape, numbers.type
    return highest.outputs[0]


def _allows(where: ir.Node) -> bool:
    """Whether it gives 0 where its condition holds, and minus infinity elsewhere."""
    yes, no = constant(where.inputs[1]), constant(where.inputs[2])
    return yes is not None and no is not None and bool((yes == 0).all() and np.isneginf(no).all())


def _rows(graph: ir.Graph, node: ir.Node, tensor: ir.Value) -> ir.Value:
    """[batch, heads, rows, size] as [batch, rows, heads · size]: what it was made of, if it was so."""
    transposed = maker(tensor, "Transpose")
    if transposed is not None and permutation(transposed) == HEADS_BEFORE_ROWS:
        split = maker(transposed.inputs[0], "Reshape")
        if split is not None and _splits_last(split):
            assert split.inputs[0] is not None
            return split.inputs[0]
    back = ir.node("Transpose", [tensor], {"perm": HEADS_BEFORE_ROWS})
    joined = ir.node("Reshape", [back.outputs[0], small(graph, "joined_heads", np.array([0, 0, -1]))])
    put(node, [back, joined])
    return joined.outputs[0]


def _splits_last(reshape: ir.Node) -> bool:
    """Whether it only cuts the last of three dims in two."""
    before, after = reshape.inputs[0], reshape.outputs[0]
    if rank(before) != 3 or rank(after) != 4:
        return False
    return all(dim_at(before, axis) == dim_at(after, axis) for axis in (0, 1))


@dataclass(frozen=True)
class _Packed:
    """Three products of the same `x` as one."""

    x: ir.Value
    weight: Array
    bias: Array
    sizes: list[int]


def _packed(rows: list[ir.Value]) -> _Packed | None:
    """The products that gave queries, keys and values, if all have the same input and nothing else needs
    them."""
    xs, weights, biases = [], [], []
    for tensor in rows:
        product, bias = _product(tensor)
        if product is None:
            return None
        found = constant(product.inputs[1])
        if found is None or found.ndim != 2 or found.dtype != np.float32:
            return None
        xs.append(product.inputs[0])
        weights.append(found)
        biases.append(np.zeros(found.shape[1], np.float32) if bias is None else bias)
    x = xs[0]
    if x is None or any(other is not x for other in xs) or rank(x) != 3:
        return None
    if any(bias.shape != (w.shape[1],) for w, bias in zip(weights, biases, strict=True)):
        return None
    return _Packed(x, np.concatenate(weights, 1), np.concatenate(biases), [w.shape[1] for w in weights])


def _product(tensor: ir.Value) -> tuple[ir.Node | None, Array | None]:
    """The MatMul that gives `tensor`, and what is added to it."""
    added = maker(tensor, "Add")
    if added is None:
        return maker(tensor, "MatMul"), None
    for product, bias in (added.inputs, reversed(added.inputs)):
        found = constant(bias)
        made = maker(product, "MatMul")
        if found is not None and made is not None and only_user(made.outputs[0], "Add") is added:
            return made, found
    return None, None


def _without_forbidden_rows(graph: ir.Graph, node: ir.Node, answer: ir.Value, bias: ir.Value) -> ir.Value:
    """[batch, rows, width], with 0 in the rows of which a bias forbids every column."""
    least = small(graph, "mask_least", np.array(_FORBIDDEN / 2, np.float32))
    axes = small(graph, "mask_axes", np.array([1, 3]))
    highest = ir.node("ReduceMax", [bias, axes], {"keepdims": 0})
    some = ir.node("Greater", [highest.outputs[0], least])
    shares = ir.node("Cast", [some.outputs[0]], {"to": ir.DataType.FLOAT})
    last = small(graph, "last_axis", np.array([2]))
    spread = ir.node("Unsqueeze", [shares.outputs[0], last])
    kept = ir.node("Mul", [answer, spread.outputs[0]])
    put(node, [highest, some, shares, spread, kept])
    return kept.outputs[0]


def _give_back(graph: ir.Graph, node: ir.Node, lowered: ir.Value, heads: int) -> None:
    """The kernel's [batch, rows, heads · size] where the graph wants it so, or split and transposed."""
    answer = node.outputs[0]
    transposed = only_user(answer, "Transpose")
    if transposed is not None and permutation(transposed) == HEADS_BEFORE_ROWS:
        joined = only_user(transposed.outputs[0], "Reshape")
        if joined is not None and _joins_last(joined):
            take_place(joined.outputs[0], lowered)
            return
    split = ir.node("Reshape", [lowered, small(graph, f"split_{heads}", np.array([0, 0, heads, -1]))])
    back = ir.node("Transpose", [split.outputs[0]], {"perm": HEADS_BEFORE_ROWS})
    put(node, [split, back])
    take_place(answer, back.outputs[0])


def _joins_last(reshape: ir.Node) -> bool:
    """Whether it only joins the last two of four dims."""
    before, after = reshape.inputs[0], reshape.outputs[0]
    if rank(before) != 4 or rank(after) != 3:
        return False
    return all(dim_at(before, axis) == dim_at(after, axis) for axis in (0, 1))
