"""Whether a graph computes with positions as floats, which need more than the eight bits of bfloat16.

In bfloat16 whole numbers are exact up to 256. A sine of a position, a comparison of two, or one that is
added to values is right for short feeds and wrong for long ones, and gates judge the lengths that the data
has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from infer.optimizer.rewriting import constant

_COUNTING = ("Range", "CumSum")
_LOOKED_UP = ("Gather", "GatherElements", "GatherND")
_COMPARING = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_OF_INTEGERS = ("Sin", "Cos")
"""What goes wrong if any integers are rounded, since an input may be positions."""

_OF_POSITIONS = (*_OF_INTEGERS, *_COMPARING, "Add", "Sub", "Floor", "Ceil", "Round", "Mod")
"""What goes wrong if counted ones are; to add a mask of zeros and ones to values does no harm."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def inexact_positions(model: ir.Model) -> str | None:
    """The node that would go wrong, and why; None if there is none."""
    counted: dict[ir.Value, bool] = {}  # what comes of integers and constants alone; whether of counting
    floats: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken = [value for value in node.inputs if value is not None]
        known = [value for value in taken if value in counted]
        rounded = [value for value in known if value in floats]
        if any(_goes_wrong(node, counted[value], taken, known) for value in rounded):
            name = node.name or node.outputs[0].name
            return (
                f"{node.op_type} {name} computes with positions, which bfloat16 rounds beyond 256:"
                f" longer inputs would be answered otherwise than those that are judged"
            )
        if not _still_positions(node, taken, known, rounded):
            continue
        counts = node.op_type in _COUNTING or any(counted[value] for value in known)
        for value in node.outputs:
            counted[value] = counts
            if _is_float(node, value, rounded):
                floats.add(value)
    return None


def _goes_wrong(node: ir.Node, counted: bool, taken: list[ir.Value], known: list[ir.Value]) -> bool:
    """Whether a node that takes rounded positions, or other integers, gives what it should not."""
    if node.op_type == "Cast":
        return counted and _cast_to(node) in _INTEGERS
    if node.op_type not in (_OF_POSITIONS if counted else _OF_INTEGERS):
        return False
    # what is added to or taken from a position is a position still
    return node.op_type not in ("Add", "Sub") or any(
        value not in known and constant(value) is None for value in taken
    )


def _still_positions(
    node: ir.Node, taken: list[ir.Value], known: list[ir.Value], rounded: list[ir.Value]
) -> bool:
    """Whether what a node gives comes of integers and constants alone."""
    if node.op_type in _COUNTING:
        return True
    if node.op_type == "Cast" and _cast_to(node) in _FLOATS and not known:
        return taken[0].dtype in _INTEGERS
    if not known or node.op_type in _COMPARING:
        return False
    if node.op_type in _LOOKED_UP and taken[0] not in known:
        return False
    return not rounded or all(value in known or constant(value) is not None for value in taken)


def _is_float(node: ir.Node, value: ir.Value, rounded: list[ir.Value]) -> bool:
    if node.op_type == "Cast":
        return _cast_to(node) in _FLOATS
    if node.op_type not in _COUNTING or value.dtype is not None:
        return bool(rounded) or value.dtype in _FLOATS
    first = constant(node.inputs[0])
    return bool(rounded) or (first is not None and first.dtype.kind == np.dtype(np.float32).kind)


def _cast_to(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())
