"""Where a node comes from: its module and its line of source, in a few bytes.

The dynamo exporter notes on every node a whole stack trace, the FX node and the class hierarchy: most
of a graph file's size, read again at every load, with paths of the machine it was made on. Kept
are two short entries, for profiles and for finding divergences:

    infer.module    the module's path in the model, such as encoder.layer.0.attention.self
    infer.source    file name and line of the innermost frame in the model's own code
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import onnx_ir as ir
import torch

MODULE, SOURCE = "infer.module", "infer.source"

_SCOPES, _TRACE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
_ROOT = "module"  # FlatModule's own attribute, in front of every path
_NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def keep_origins(model: ir.Model) -> None:
    """Replace all metadata and doc strings in `model` by the two entries above, in place."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _clear(value)
        for node in graph:
            module = _owner(node) or _module(node.metadata_props.get(_SCOPES, ""))
            source = _source(node.metadata_props.get(_TRACE, ""))
            node.metadata_props.clear()
            node.doc_string = None
            node.metadata_props.update({k: v for k, v in ((MODULE, module), (SOURCE, source)) if v})
            for value in node.outputs:
                _clear(value)


def _clear(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    if value.const_value is not None:
        value.const_value.metadata_props.clear()


def _module(scopes: str) -> str:
    """The path of the innermost module, from a list of scopes that ends with the node itself."""
    try:
        paths = [str(path) for path in ast.literal_eval(scopes)]
    except (ValueError, SyntaxError):
        return ""
    inner = next((p for p in reversed(paths[:-1]) if p == _ROOT or p.startswith(f"{_ROOT}.")), "")
    return inner.removeprefix(_ROOT).removeprefix(".")


def _owner(node: ir.Node) -> str:
    """The path of a convolution's module, from the name of its weights; "" of other nodes.

    The exporter folds a batch norm into the convolution before it, and the scopes are then the norm's.
    """
    weights = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") else None
    name = (weights.name if weights is not None else None) or ""
    return name.removeprefix(f"{_ROOT}.").rpartition(".")[0] if name.startswith(f"{_ROOT}.") else ""


def _source(trace: str) -> str:
    """`file.py:line` of the last frame outside of torch and of the converters."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(path, line) for path, line in frames if not path.startswith(_NOT_THE_MODEL)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
