"""The form in which passes get a graph, whichever exporter wrote it.

Weights are weights only, Identity is gone but where a graph gives what is not its own, nodes have names of
their own, and values have shapes where they follow from the inputs'.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, ShapeInferencePass

_WEIGHTS_ALONE = 4
"""The first IR version in which a weight need not be an input."""


NO_TENSORS = ("Sequence", "Optional")
"""In the names of operators that give something else."""

# without shapes, patterns are declined one by one; why there are none is a traceback in the log
logging.getLogger("onnx_ir.passes.common.shape_inference").setLevel(logging.ERROR)


def canonical(path: Path) -> ir.Model:
    """The graph in a file, to be rewritten."""
    model = ir.load(path)
    # a session cannot be fed with weights that old graphs list among their inputs, too
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, _WEIGHTS_ALONE)
    _drop_identities(model.graph)
    unknown = any(value.shape is None for node in model.graph for value in node.outputs if value.name)
    # inference notes tensors where sequences are
    if unknown and not any(word in node.op_type for node in model.graph for word in NO_TENSORS):
        ShapeInferencePass()(model)
    _name_nodes(model.graph)
    return model


def _drop_identities(graph: ir.Graph) -> None:
    """Also within branches and loops. onnx-ir's own pass gives a branch an output that is another graph's,
    and takes the name of an output from what is an output, too."""
    for node in list(ir.traversal.RecursiveGraphIterator(graph)):
        if node.domain != "" or node.op_type != "Identity" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if result.is_graph_output():
            given = source.is_graph_input() or source.is_initializer() or source.is_graph_output()
            if given or source.graph is not node.graph:
                continue
        source.shape = result.shape if source.shape is None else source.shape
        source.type = result.type if source.type is None else source.type
        name, is_output = result.name, result.is_graph_output()
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        if is_output:
            source.name = name


def _name_nodes(graph: ir.Graph) -> None:
    """By name a recipe is told what stays in float, and whose weights are whose."""
    taken: set[str] = set()
    for number, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{number}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
