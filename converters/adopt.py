"""Adopts an existing `.onnx` file: checks it, proves that it answers the same once optimized, and
gives it a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from converters.options import ConvertOptions, check_tolerances
from converters.points import Point, to_numpy
from converters.sources import SourceRequest
from converters.writing import now, versions, write_artifact
from infer.artifact import Artifact
from infer.drafts import artifact_draft
from infer.errors import ConversionError, InferError, ParityError
from infer.manifest import (
    FORMAT_VERSION,
    Manifest,
    Measured,
    Parity,
    Provenance,
    Variant,
)
from infer.options import PlanOptions, SessionOptions
from infer.parity import compare
from infer.plain import artifact_of_graph
from infer.session import open_session
from infer.signature import Array, Signature, TensorSpec

Progress = Callable[[str], None]

_BATCH_SIZE, _OTHER_SIZE = 2, 8
"""Sizes tried for dims that a graph leaves open: the first axis, and the others."""


def adopt_graph(
    request: SourceRequest, output: Path, options: ConvertOptions, progress: Progress
) -> Artifact:
    """Make the `.onnx` file that `request` names an artifact at `output`.

    The original framework is gone, so the oracle is ONNX Runtime without graph optimizations.
    Raises `ConversionError`, `ParityError` or `ArtifactError`.
    """
    path = Path(request.source)
    progress(f"checking '{path.name}'")
    plain = artifact_of_graph(path)
    _check(path)
    check_tolerances(options.tolerances, [spec.name for spec in plain.manifest.outputs])
    feeds = _feeds(plain.manifest.signature, request)
    expected = _run(plain, feeds, "none")
    actual = _run(plain, feeds, "all")
    differences = compare(expected, actual, options.tolerances)
    wrong = [d for d in differences if not d.within]
    if wrong and not options.allow_mismatch:
        raise ParityError(f"'{path}' answers differently once ONNX Runtime optimized it: {wrong[0]}")
    variant = plain.manifest.variants[0]
    graph = f"graphs/{path.name}"
    example = Point("example", frozenset(), feeds, expected)
    with artifact_draft(output, overwrite=options.overwrite) as draft:
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=request.name,
            inputs=plain.manifest.inputs,
            outputs=plain.manifest.outputs,
            structure=plain.manifest.structure,
            task=request.task,
            variants=(Variant("onnx", graph, variant.precision, variant.opset, variant.size_bytes),),
            golden=(),
            parity=Parity(
                oracle="the same graph in ONNX Runtime without graph optimizations",
                tolerances=dict(options.tolerances),
                measured=tuple(
                    Measured("example", d.output, d.max_abs, d.max_relative, d.cosine, d.within)
                    for d in differences
                ),
                mismatch_allowed=bool(wrong),
            ),
            provenance=Provenance(
                source=path.name,
                source_class=None,
                weights_sha256=None,
                parameters=None,
                attempts=(),
                patches=(),
                versions=versions(),
                created=now(),
                notes=("adopted from an ONNX file: nothing is known of the model it came from",),
            ),
            files={},
        )
        graphs = {f"graphs/{name}": path.parent / name for name in plain.manifest.files}
        write_artifact(draft, manifest, {**graphs, **request.files}, [example])
    return Artifact.open(output)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # ValidationError, DecodeError and what protobuf raises
        text = " ".join(str(error).split())
        raise ConversionError(f"'{path}' is not a valid ONNX model: {text[:400]}") from error


def _run(plain: Artifact, feeds: dict[str, Array], optimization: str) -> dict[str, Array]:
    options = PlanOptions(device="cpu", graph_optimization=optimization)
    try:
        with open_session(plain, options, SessionOptions(verify=False, warm_up=False)) as session:
            return session.run(feeds)
    except InferError as error:
        raise ConversionError(
            f"{error}. If the example feeds are at fault, give some that fit: --input NAME=SHAPE:DTYPE"
        ) from error


def _feeds(signature: Signature, request: SourceRequest) -> dict[str, Array]:
    given = request.example_inputs or {}
    if not isinstance(given, Mapping):
        given = dict(zip((spec.name for spec in signature.inputs), given, strict=False))
    rng = np.random.default_rng(0)
    sizes = {
        dim: _BATCH_SIZE if axis == 0 else _OTHER_SIZE
        for spec in signature.inputs
        for axis, dim in enumerate(spec.dims)
        if isinstance(dim, str)
    }
    return {
        spec.name: to_numpy(given[spec.name], spec.name)
        if spec.name in given
        else _values(spec, sizes, rng)
        for spec in signature.inputs
    }


def _values(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims]
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if spec.numpy_dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(spec.numpy_dtype)
    # 0 and 1 are ids of every vocabulary, and a mask
    values: Any = rng.integers(0, 2, shape)
    return np.asarray(values).astype(spec.numpy_dtype)
