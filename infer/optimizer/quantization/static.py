"""Static int8: weights and activations, with ranges that calibration found.

    before   Relu(Conv(x, W, b))     after   Q(DQ-Conv(DQ(Q(x)), DQ(W8), DQ(b32))), and no Relu

Between convolutions tensors stay in eight bits: sums, pooling and concatenation, too. A Relu or Clip whose
result is quantized is dropped, since the range begins at zero and ends where it clips. Between products of
a transformer lie norms and sums that need float32 anyway: there only what goes into products is quantized.

What only moves values about, such as concatenation, takes and gives eight bits. A library that looks at one
node at a time (ONNX Runtime) must be told the steps of what it gives; one that finds out (OpenVINO) would
take new steps for new rounding. There what comes together into one convolution has the same steps.

Of attention the scores have eight bits where it is told: products of queries and keys grow with the square
of the length, and are most of what is left in float once a transformer's weights have eight bits (Whisper's
encoder, 1,500 rows: ×0.81 of the time). Their ranges are to both sides alike, since the product of two
tensors with zero points has no kernel. What softmax gives stays in float: most of its numbers are small
beside the largest, and would be none.

Why it is faster: int8 products, and a quarter of the memory to move.

Numbers: a scale for each tensor, fixed, so that no answer depends on its neighbours in a batch.

Source: ONNX `QuantizeLinear`, `DequantizeLinear`; ONNX Runtime, "Quantize ONNX models", QDQ format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from infer.optimizer.passes import PassResult
from infer.optimizer.quantization.calibration import ActivationRange, Observed
from infer.optimizer.quantization.folding import fold_scales
from infer.optimizer.quantization.weights import quantize_weight
from infer.optimizer.rewriting import constant, constant_or_turned, maker, only_user, put, tidy, weight
from infer.signature import Array

_PASSED_ON = ("MaxPool", "GlobalAveragePool", "AveragePool", "Concat", "Flatten", "Reshape", "Transpose")
"""Operators that work on eight bits as they do on floats, where what comes in is quantized anyway."""

_ACTIVATIONS = ("Sigmoid", "LeakyRelu")
"""Activations that ONNX Runtime computes on eight bits, by a table, as parts of SiLU, say."""

_MOVING = frozenset({"MaxPool", "Concat", "Flatten", "Reshape", "Transpose"})
"""Those of them that compute no new values."""

_EIGHT_BITS_OUT = frozenset({"Conv", "Add", "Mul", "GlobalAveragePool", "AveragePool", *_ACTIVATIONS})
"""Those that ONNX Runtime computes on integers only if what comes out has eight bits; a product of matrices
may give floats."""

_KINDS = frozenset({"Conv", "Gemm", "MatMul"})
_CLIPPING = ("Relu", "Clip")

_BIAS_STEPS = 2**30
"""At most so many steps is a bias: half of what 32 bits hold leaves room for its correction."""

Observing = Callable[[Sequence[str]], Mapping[str, Observed]]
"""What calibration saw of the tensors of these names."""


def candidates(model: ir.Model, *, transposed: bool = False) -> list[ir.Node]:
    """The nodes with float32 weights that could be quantized; transposed convolutions only where kernels
    for them are told to be there."""
    kinds = _KINDS | {"ConvTranspose"} if transposed else _KINDS
    return [n for n in model.graph if n.domain == "" and n.op_type in kinds and _weighted(n)]


def quantize_statically(
    model: ir.Model,
    observing: Observing,
    method: str,
    keep: Collection[str] = (),
    *,
    pair_bounded: bool,
    between: bool = True,
    transposed: bool = False,
    step_by_step: bool = True,
    signed: bool = False,
    scores: Collection[ir.Node] = (),
) -> PassResult:
    """Quantize the `candidates` but those whose nodes are called as `keep` says, and what lies `between`
    them, unless told otherwise; ranges are chosen by one of `calibration.METHODS`. `step_by_step`: whether
    what moves values about says the steps of what it gives; `signed`: whether values of which some are
    negative have steps to both sides alike. `scores`: products of two activations, whose steps are always
    so, to be quantized too; they are not counted."""
    fold_scales(model)
    result = PassResult()
    heavy: list[ir.Node] = []
    for node in candidates(model, transposed=transposed):
        result.found += 1
        if node.name in keep:
            result.decline("kept in float for accuracy")
        else:
            heavy.append(node)
    if not heavy and not scores:
        return result
    chosen = _with_light(model, heavy, step_by_step) if between else heavy
    moving = set() if step_by_step else {node for node in chosen if node.op_type in _MOVING}
    before = dict.fromkeys(node for each in scores for value in each.inputs for node in _moved_by(value))
    moving = moving.union(before)
    tensors = _tensors([*chosen, *scores], scores, between, moving)
    chosen = [*chosen, *before, *scores]
    alike = {
        source
        for node in scores
        for value in node.inputs
        if value is not None
        for source in _sources(value, moving)
    }
    inputs = [value for node in heavy if (value := node.inputs[0]) is not None]
    seen = observing(list(dict.fromkeys(value.name or "" for value in (*tensors, *inputs))))
    ranges = _brought_together(
        {
            value: replace(seen[value.name or ""].range(method), signed=signed or value in alike)
            for value in tensors
        },
        [_sources(value, moving) for value in inputs],
    )
    for node, value in zip(heavy, inputs, strict=True):
        steps = ranges[_sources(value, moving)[0]]
        _quantize_weights(model.graph, node, steps, seen[value.name or ""], pair_bounded)
        result.rewritten += 1
    quantized = {value: _pair(model.graph, value, ranges[value]) for value in tensors}
    for node in chosen:
        for place, value in enumerate(node.inputs):
            if value in quantized:
                node.replace_input_with(place, quantized[value])
    if between and step_by_step:
        _leave_in_eight_bits({n for n in chosen if n.op_type in _EIGHT_BITS_OUT}, quantized)
    _drop_clipping(quantized, ranges)
    tidy(model)
    return result


def _weighted(node: ir.Node) -> bool:
    found = constant_or_turned(node.inputs[1])
    if found is None or found.dtype != np.float32 or node.inputs[0] is None:
        return False
    if constant(node.inputs[0]) is not None:  # a product of weights, which no calibration sees
        return False
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return False
    if node.op_type in ("Conv", "ConvTranspose"):
        return len(node.inputs) < 3 or node.inputs[2] is None or constant(node.inputs[2]) is not None
    if node.op_type == "MatMul":
        return found.ndim == 2
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    return plain and not attributes.get_int("transA", 0)


def _with_light(model: ir.Model, heavy: Sequence[ir.Node], step_by_step: bool) -> list[ir.Node]:
    """The heavy nodes and those between them, in order: sums whose parts both come from quantized nodes,
    and what passes quantized tensors on; `step_by_step`, products and activations, too, which others
    compute in float between two convolutions at no cost."""
    together = ("Add", "Mul") if step_by_step else ("Add",)
    passed_on = (*_PASSED_ON, *_ACTIVATIONS) if step_by_step else _PASSED_ON
    chosen: list[ir.Node] = []
    inside = set(heavy)
    for node in model.graph:
        if node in inside:
            chosen.append(node)
            continue
        if node.domain != "":
            continue
        sources = [_through_clipping(value) for value in node.inputs if value is not None]
        from_inside = [source is not None and source in inside for source in sources]
        joins = node.op_type in together and len(from_inside) == 2 and all(from_inside)
        passes_on = node.op_type in passed_on and bool(from_inside) and from_inside[0]
        if node.op_type == "Concat":
            passes_on = all(from_inside)
        if joins or passes_on:
            inside.add(node)
            chosen.append(node)
    return chosen


def _through_clipping(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.domain == "" and node.op_type in _CLIPPING:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node


def _moved_by(value: ir.Value | None) -> Iterator[ir.Node]:
    """What moves the values of queries or keys about, or scales them all alike, before they are
    multiplied."""
    while (node := maker(value, "Reshape", "Transpose", "Mul")) is not None:
        factor = constant(node.inputs[1]) if node.op_type == "Mul" else None
        if node.op_type == "Mul" and (factor is None or factor.size != 1):
            return
        yield node
        value = node.inputs[0]


def _tensors(
    chosen: Sequence[ir.Node], scores: Collection[ir.Node], between: bool, moving: Collection[ir.Node]
) -> list[ir.Value]:
    """The activations that are quantized: all that go in, and `between` nodes what comes out behind a Relu
    or Clip; not what the nodes that are `moving` give."""
    found: dict[ir.Value, None] = {}
    for node in chosen:
        all_of_them = node in scores or node.op_type in ("Add", "Mul", "Concat")
        activations = node.inputs if all_of_them else node.inputs[:1]
        for value in activations:
            if value is not None and constant(value) is None:
                found.update(dict.fromkeys(_sources(value, moving)))
        if not between or node in moving:
            continue
        after = node.outputs[0]
        while (clipping := only_user(after, *_CLIPPING)) is not None:
            after = clipping.outputs[0]
        if not after.is_graph_output():
            found[after] = None
    return list(found)


def _leave_in_eight_bits(chosen: Collection[ir.Node], quantized: Mapping[ir.Value, ir.Value]) -> None:
    """What the nodes give has eight bits for all who take it, such as an activation in float: otherwise
    there is no product of integers, but one in float with weights that are unpacked for each run."""
    for value, there in quantized.items():
        if _through_clipping(value) in chosen:
            for user, place in list(value.uses()):
                if user.op_type != "QuantizeLinear":
                    user.replace_input_with(place, there)


def _sources(value: ir.Value, moving: Collection[ir.Node]) -> list[ir.Value]:
    """What a tensor's values are, before they were moved about."""
    node = value.producer()
    if node is None or node not in moving:
        return [value]
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return list(dict.fromkeys(s for each in inputs if each is not None for s in _sources(each, moving)))


def _brought_together(
    ranges: Mapping[ir.Value, ActivationRange], groups: Sequence[Sequence[ir.Value]]
) -> dict[ir.Value, ActivationRange]:
    """The ranges, but one for all of a group, which holds each of theirs."""
    found = dict(ranges)
    changed = True
    while changed:  # a tensor may be in several groups
        changed = False
        for group in groups:
            members = [found[value] for value in group]
            low, high = min(m.low for m in members), max(m.high for m in members)
            widest = ActivationRange(low, high, members[0].signed)
            changed = changed or any(member != widest for member in members)
            found.update(dict.fromkeys(group, widest))
    return found


def _pair(graph: ir.Graph, value: ir.Value, within: ActivationRange) -> ir.Value:
    """`value` quantized and back, after whatever gives it; only the nodes chosen take what comes out."""
    scale, zero = within.steps()
    steps = [
        weight(graph, f"{value.name}_scale", np.array(scale)),
        weight(graph, f"{value.name}_zero", np.array(zero)),
    ]
    down = ir.node("QuantizeLinear", [value, *steps])
    up = ir.node("DequantizeLinear", [down.outputs[0], *steps])
    made_by = value.producer()
    if made_by is None:
        graph.insert_before(graph[0], [down, up])
    else:
        graph.insert_after(made_by, [down, up])
    up.outputs[0].shape, up.outputs[0].type = value.shape, value.type
    return up.outputs[0]


def _quantize_weights(
    graph: ir.Graph, node: ir.Node, activations: ActivationRange, seen: Observed, pair_bounded: bool
) -> None:
    matrix = constant_or_turned(node.inputs[1])
    assert matrix is not None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    axis = 0 if node.op_type == "Conv" or transposed else 1  # of the outputs
    bias = _bias(node, matrix.shape[axis])
    # biases are added to the products' sums, so they have the products' scale, of which they must not be
    # more steps than an integer has
    least = None if bias is None else np.abs(bias) / (float(activations.steps()[0]) * _BIAS_STEPS)
    quantized = quantize_weight(matrix, axis, pair_bounded=pair_bounded, least=least)
    up = ir.node(
        "DequantizeLinear",
        [
            weight(graph, f"{node.name}_int8", quantized.values),
            weight(graph, f"{node.name}_scale", quantized.scale),
            weight(graph, f"{node.name}_zero", np.zeros(len(quantized.scale), np.int8)),
        ],
        {"axis": axis},
    )
    put(node, [up])
    node.replace_input_with(1, up.outputs[0])
    shape = [1] * matrix.ndim
    shape[axis] = -1
    lost = np.moveaxis(matrix - quantized.values * quantized.scale.reshape(shape), axis, 0)
    if node.op_type == "MatMul":
        _correct_sum(graph, node, _mean_of_products(node, lost, seen.feature_means))
        return
    if bias is None:
        return
    bias = bias + _mean_of_products(node, lost, seen.means)
    if len(node.inputs) < 3:
        if not bias.any():
            return
        node.resize_inputs(3)
    scale = (np.float64(activations.steps()[0]) * quantized.scale).astype(np.float32)
    largest = np.iinfo(np.int32).max
    steps = np.clip(np.rint(bias.astype(np.float64) / scale), -largest, largest).astype(np.int32)
    up = ir.node(
        "DequantizeLinear",
        [
            weight(graph, f"{node.name}_bias_int32", steps),
            weight(graph, f"{node.name}_bias_scale", scale),
            weight(graph, f"{node.name}_bias_zero", np.zeros(len(scale), np.int32)),
        ],
        {"axis": 0},
    )
    put(node, [up])
    node.replace_input_with(2, up.outputs[0])


def _bias(node: ir.Node, channels: int) -> Array | None:
    """What a Conv or Gemm adds to each output; None if it is not one number each, or for a MatMul."""
    if node.op_type == "MatMul":
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels, np.float32)
    found = constant(node.inputs[2])
    return found if found is not None and found.ndim == 1 else None


def _correct_sum(graph: ir.Graph, node: ir.Node, correction: Array) -> None:
    """Add to the bias of a MatMul, a constant that is added to what it gives, if there is one."""
    add = only_user(node.outputs[0], "Add")
    if add is None:
        return
    place = 1 - add.inputs.index(node.outputs[0])
    bias = constant(add.inputs[place])
    if bias is not None and bias.dtype == np.float32 and bias.shape == correction.shape:
        corrected = (bias + correction).astype(np.float32)
        add.replace_input_with(place, weight(graph, f"{node.name}_bias", corrected))


def _mean_of_products(node: ir.Node, lost: Array, means: Array) -> Array:
    """What rounding the weights takes from each output in the mean, as far as the means of the input's
    channels tell: it is given back with the bias.

    `lost` has shape (outputs, inputs of a group, …). Source: Nagel et al. 2019, "Data-free quantization",
    section 4.2.
    """
    rows = lost.reshape(*lost.shape[:2], -1).sum(axis=2)
    if node.op_type == "ConvTranspose":  # an output gets, in the mean, one tap of so many
        rows = rows / np.prod(node.attributes.get_ints("strides", [1]))
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    if means.shape != (rows.shape[1] * groups,):
        return np.zeros(len(rows))
    of_group = means.reshape(groups, -1).repeat(len(rows) // groups, axis=0)
    return np.asarray((rows * of_group).sum(axis=1))


def _drop_clipping(
    quantized: Mapping[ir.Value, ir.Value], ranges: Mapping[ir.Value, ActivationRange]
) -> None:
    """A Relu, or Clip from 0, of which nothing but its quantized form is used: quantizing clips as well, if
    the range ends where it clips."""
    for value in quantized:
        clipping = maker(value, *_CLIPPING)
        down = only_user(value, "QuantizeLinear")
        if clipping is None or down is None or clipping.inputs[0] is None:
            continue
        zero = constant(down.inputs[2])
        starts_at_zero = zero is not None and zero.dtype == np.uint8 and int(zero) == 0
        if clipping.op_type == "Clip":
            low = constant(clipping.inputs[1]) if len(clipping.inputs) > 1 else None
            starts_at_zero = starts_at_zero and low is not None and float(low) == 0.0
            upper = clipping.inputs[2] if len(clipping.inputs) > 2 else None
            high = constant(upper)
            if upper is not None and (high is None or float(high) < ranges[value].high):
                continue
        if starts_at_zero:
            down.replace_input_with(0, clipping.inputs[0])
