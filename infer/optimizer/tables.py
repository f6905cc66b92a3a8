"""Which ids a graph takes: as many as the tables have rows that it looks them up in."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_SAME = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Their outputs have the numbers of their first inputs."""


def ids_of(graph: ir.Graph) -> dict[str, int]:
    """Input → how many ids it may have: the rows of the smallest table; inputs of no table are left out."""
    found = {value.name or "": list(_rows(value)) for value in graph.inputs}
    return {name: min(rows) for name, rows in found.items() if rows}


def _rows(ids: ir.Value) -> Iterator[int]:
    for node, place in ids.uses():
        if node.domain != "":
            continue
        if node.op_type in _SAME and place == 0:
            yield from _rows(node.outputs[0])
        elif node.op_type == "Gather" and place == 1 and node.attributes.get_int("axis", 0) == 0:
            table = node.inputs[0]
            if table is not None and table.const_value is not None and table.const_value.shape:
                yield table.const_value.shape.numpy()[0]
