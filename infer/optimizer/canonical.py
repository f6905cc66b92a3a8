"""The form in which passes get a graph, whichever exporter wrote it.

Weights are weights only, Identity is gone, nodes have names of their own, and values have shapes where they
follow from the inputs'.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
)

_WEIGHTS_ALONE = 4
"""The first IR version in which a weight need not be an input."""


_NO_TENSORS = ("Sequence", "Optional")
"""In the names of operators that give something else."""


def canonical(path: Path) -> ir.Model:
    """The graph in a file, to be rewritten."""
    model = ir.load(path)
    # a session cannot be fed with weights that old graphs list among their inputs, too
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, _WEIGHTS_ALONE)
    IdentityEliminationPass()(model)
    unknown = any(value.shape is None for node in model.graph for value in node.outputs if value.name)
    # inference notes tensors where sequences are
    if unknown and not any(word in node.op_type for node in model.graph for word in _NO_TENSORS):
        ShapeInferencePass()(model)
    _name_nodes(model.graph)
    return model


def _name_nodes(graph: ir.Graph) -> None:
    """By name a recipe is told what stays in float, and whose weights are whose."""
    taken: set[str] = set()
    for number, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
