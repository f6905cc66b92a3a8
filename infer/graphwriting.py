"""Writing a graph: in one file, or with its weights beside it where they can be mapped into memory."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

# Below this a graph is one file; above, weights go beside it, where they can be mapped into
# memory instead of being parsed and copied.
_EXTERNAL_BYTES = 4 * 2**20
# Tensors smaller than a page gain nothing from being mapped.
_EXTERNAL_TENSOR_BYTES = 1024


def weight_bytes(model: ir.Model) -> int:
    """Size of all initializers of the main graph."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def save(model: ir.Model, path: Path) -> int:
    """Write the graph, with its weights beside it if they are large; their total size in bytes. A link in
    the place of either is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + ".data")
    for place in (path, data):
        if place.is_symlink():
            place.unlink()  # it may lead anywhere
    if weight_bytes(model) < _EXTERNAL_BYTES:
        # weights that lie beside the graph this one was made of would be looked for beside the new one
        ir.external_data.load_to_model(model)
        ir.save(model, path)
        return path.stat().st_size
    ir.save(model, path, external_data=data.name, size_threshold_bytes=_EXTERNAL_TENSOR_BYTES)
    return path.stat().st_size + data.stat().st_size
