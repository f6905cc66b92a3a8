"""The plain export: `torch.onnx.export` of the model's own source, as PyTorch's documentation shows it.

    python -m bench.peers.plain_export SOURCE GRAPH.onnx AXES

AXES is JSON, input → axis → name of the dim. Prints which axes vary in the end. Nothing here is infer's but
the way to name a source. Documentation:
https://docs.pytorch.org/tutorials/beginner/onnx/export_simple_model_to_onnx_tutorial.html and, for dynamic
axes, https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch

from converters.flat import FlatModule
from converters.sources import SourceRequest, open_source

Axes = Mapping[str, Mapping[int, str]]


def main() -> None:
    """Export with all axes that the artifact can vary, or with the batch alone where that fails."""
    source, path, told = sys.argv[1:]
    axes: Axes = {
        name: {int(axis): dim for axis, dim in dims.items()} for name, dims in json.loads(told).items()
    }
    opened = open_source(SourceRequest(source, "model"))
    flat = FlatModule(opened)
    example = dict(zip(flat.input_names, flat.example, strict=True))
    module = opened.module.eval()
    batch = {name: {0: dims[0]} for name, dims in axes.items() if 0 in dims}
    try:
        _export(module, example, path, axes)
        print("all axes that infer's artifact can vary")
    except Exception:
        if batch == axes:
            raise
        _export(module, example, path, batch)
        print("the batch alone may vary, as its export with all axes that infer's can vary fails")


def _export(module: Any, example: dict[str, torch.Tensor], path: str, axes: Axes) -> None:
    shapes = {name: dict(axes.get(name, {})) for name in example}
    with torch.no_grad():
        program = torch.onnx.export(module, (), kwargs=example, dynamo=True, dynamic_shapes=shapes)
    assert program is not None
    program.save(path)


if __name__ == "__main__":
    main()
