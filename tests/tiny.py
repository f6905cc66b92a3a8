"""Tiny ONNX models, made with the onnx package, and files around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

ONNX_NAMES = {"float32": "float", "float64": "double", "bool": "bool", "string": "string"}
"""numpy's name of a dtype → that of ONNX's text format, where the two differ."""


def parse(text: str, *, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """The model whose graph `text` is, in ONNX's text format."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["":{opset}]> {text}')


def write(folder: Path, text: str, name: str = "model.onnx") -> Path:
    """That model as a checked file in `folder`."""
    model = parse(text)
    onnx.checker.check_model(model)
    path = folder / name
    onnx.save(model, path)
    return path


def identity(dtype: str, dims: str = "N, M") -> str:
    """A graph that answers `y` = `x`; ONNX Runtime copies `x` bit by bit."""
    kind = ONNX_NAMES.get(dtype, dtype)
    return f"g ({kind}[{dims}] x) => ({kind}[{dims}] y) {{ y = Identity(x) }}"


def classifier(seed: int = 7) -> onnx.ModelProto:
    """A seeded 10-5-2 net: `x` float32 [batch, 10] to `logits` [batch, 2]."""
    rng = np.random.default_rng(seed)
    model = parse(
        "g (float[batch, 10] x) => (float[batch, 2] logits) {"
        " h = Gemm<transB = 1>(x, w1, b1) a = Relu(h) logits = Gemm<transB = 1>(a, w2, b2) }"
    )
    for name, shape in (("w1", (5, 10)), ("b1", (5,)), ("w2", (2, 5)), ("b2", (2,))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def classify(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What `classifier()` answers, in float64: the closed form."""
    w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    hidden = np.maximum(x.astype(np.float64) @ w["w1"].T + w["b1"], 0.0)
    return np.asarray(hidden @ w["w2"].T + w["b2"])


def edit_manifest(artifact: Path, edit: Any) -> None:
    """Rewrite the manifest of `artifact` after `edit`, which changes the parsed JSON in place."""
    path = artifact / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def make_artifact(path: Path, model: onnx.ModelProto | None = None) -> Path:
    """`model`, `classifier()` by default, adopted as an artifact, with golden points."""
    import converters

    graph = path.with_suffix(".onnx")
    graph.write_bytes((model or classifier()).SerializeToString())
    converters.convert(graph, path)
    graph.unlink()
    return path


def reseal(artifact: Path) -> None:
    """Let the manifest list what is there now, as someone would who made the artifact to harm."""
    from infer.artifact import record_files
    from infer.schema import encode

    edit_manifest(artifact, lambda data: data.update(files=encode(record_files(artifact))))
