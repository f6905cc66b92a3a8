"""Whether a graph has steps that need more than the eight bits of bfloat16, whatever the gates see.

In bfloat16 whole numbers are exact up to 256. A sine of a position, a size that is rounded down, a
comparison of two positions, or a position that is added to values is right for short feeds and wrong for
long ones, and gates judge the lengths and the times that the data has. So any such step will do: what it
is computed from can be spelled in too many ways.
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
_EXACT = frozenset(
    {
        "Shape",
        "Size",
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


def needs_more_bits(model: ir.Model) -> str | None:
    """The first step that bfloat16 could break at lengths that nobody judged, and why; None if there is
    none. Integers are never rounded, so steps whose operands are known to be integers do no harm."""
    counted: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken = [value for value in node.inputs if value is not None]
        computed = [value for value in taken if constant(value) is None]
        if node.domain == "" and _breaks(node, computed, counted):
            name = node.name or node.outputs[0].name
            return (
                f"{node.op_type} {name} may compute with positions or sizes, which bfloat16 rounds beyond"
                f" 256: longer inputs could be answered otherwise than those that are judged"
            )
        if node.op_type in _COUNTING or (node.op_type in _COUNTED_STILL and counted.intersection(taken)):
            counted.update(node.outputs)
    return None


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
