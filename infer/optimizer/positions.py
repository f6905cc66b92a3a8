"""Whether a graph has steps that need more than the eight bits of bfloat16, whatever the gates see.

In bfloat16 whole numbers are exact up to 256. A sine of a position, a size that is rounded down, a
comparison of two positions, or a position that is added to values is right for short feeds and wrong for
long ones, and gates judge the lengths and the times that the data has. So any such step will do: what it
is computed from can be spelled in too many ways.

Where a model is compiled for the shapes that are fed, what follows from shapes alone is a constant,
computed in float32 before, and does no harm.
"""

from __future__ import annotations

import onnx_ir as ir

from infer.optimizer.rewriting import constant

_PHASES = ("Sin", "Cos", "Tan")
_ROUNDING = ("Floor", "Ceil", "Round", "Mod")
_PLACES = ("GridSample", "RoiAlign")
_COMPARING = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_COUNTING = ("Range", "CumSum")
_COUNTED_STILL = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Concat", "Div", "Expand", "Flatten", "Identity", "Max", "Min", "Mul",
     "Neg", "Reshape", "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
_RANDOM = ("Random", "Bernoulli", "Multinomial")
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_SHAPES = ("Shape", "Size")
_EXACT = frozenset(
    {
        *_SHAPES,
        "NonZero",
        "ArgMax",
        "ArgMin",
        "And",
        "Or",
        "Not",
        "Xor",
        "IsNaN",
        "IsInf",
        *_COMPARING,
    }
)
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def needs_more_bits(model: ir.Model, shapes_known: bool = False) -> str | None:
    """The first step that bfloat16 could break at lengths that nobody judged, and why; None if there is
    none. Integers are never rounded, so steps whose operands are known to be integers do no harm.
    `shapes_known`: whether all that follows from shapes alone is computed before, in float32."""
    counted: set[ir.Value] = set()
    folded = _of_shapes(model.graph) if shapes_known else set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken = [value for value in node.inputs if value is not None]
        computed = [value for value in taken if constant(value) is None]
        if node.domain == "" and not folded.issuperset(computed) and _breaks(node, computed, counted):
            name = node.name or node.outputs[0].name
            return (
                f"{node.op_type} {name} may compute with positions or sizes, which bfloat16 rounds beyond"
                f" 256: longer inputs could be answered otherwise than those that are judged"
            )
        if node.op_type in _COUNTING or (node.op_type in _COUNTED_STILL and counted.intersection(taken)):
            counted.update(node.outputs)
    return None


def _of_shapes(graph: ir.Graph) -> set[ir.Value]:
    """What follows from the shapes of values and from constants. Nothing in a branch or a loop: these may
    be run as they are."""
    found: set[ir.Value] = set()
    for node in graph:
        inner = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        if node.domain != "" or inner or node.op_type.startswith(_RANDOM):
            continue
        if node.op_type in _SHAPES or all(
            value is None or value in found or constant(value) is not None for value in node.inputs
        ):
            found.update(node.outputs)
    return found


def _breaks(node: ir.Node, computed: list[ir.Value], counted: set[ir.Value]) -> bool:
    floats = [value for value in computed if not _is_exact(value)]
    if not floats:
        return False
    if node.op_type in (*_PHASES, *_ROUNDING, *_PLACES):
        return True
    if node.op_type == "Cast":
        return _cast_to(node) in _INTEGERS
    if node.op_type in _COMPARING:
        return len(floats) == 2
    # what is added to a position is one still, if it is a constant or counted, too
    return node.op_type in ("Add", "Sub") and 0 < len(counted.intersection(floats)) < len(floats)


def _is_exact(value: ir.Value) -> bool:
    """Whether it is known to be of integers or truth values."""
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        return _cast_to(node) in _INTEGERS
    if node is not None and node.op_type in _EXACT:
        return True
    return value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)


def _cast_to(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())
