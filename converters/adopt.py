"""Adopts an existing `.onnx` file: checks it, proves that it answers the same once optimized, and
gives it a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from converters.finish import RANDOM_OPERATORS
from converters.graph_points import graph_points
from converters.options import ConvertOptions, check_tolerances
from converters.sources import SourceRequest
from converters.writing import now, versions, write_artifact
from infer.artifact import Artifact
from infer.bare_graph import artifact_of_graph
from infer.drafts import artifact_draft
from infer.errors import ConversionError, InferError, ParityError
from infer.graphfile import read_graph_file
from infer.manifest import (
    FORMAT_VERSION,
    Manifest,
    Measured,
    Parity,
    Provenance,
)
from infer.options import PlanOptions, SessionOptions
from infer.parity import compare
from infer.session import Session, open_session
from infer.signature import Signature

Progress = Callable[[str], None]


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
    _refuse_options(request, options, plain.manifest.signature)
    check_tolerances(options.tolerances, [spec.name for spec in plain.manifest.outputs])
    if drawn := sorted(read_graph_file(path).operators.keys() & RANDOM_OPERATORS):
        raise ConversionError(
            f"'{path}' draws random numbers ({', '.join(drawn)}), so nothing can be proved about it; take"
            f" them out, or make the noise an input"
        )
    with _opened(plain, "none") as oracle, _opened(plain, "all") as optimized:
        points, limits, notes = graph_points(plain.manifest.signature, request, oracle.run, progress)
        measured, wrong = [], []
        for point in points:
            optimized.run(point.feeds)  # twice: the second run takes the path of repeated shapes
            for d in compare(point.outputs, optimized.run(point.feeds), options.tolerances):
                measured.append(
                    Measured(point.name, d.output, d.max_abs, d.max_relative, d.cosine, d.within)
                )
                wrong += [] if d.within else [f"at {point.name}, {d}"]
    if wrong and not options.allow_mismatch:
        raise ParityError(f"'{path}' answers differently once ONNX Runtime optimized it: {wrong[0]}")
    variant = plain.manifest.variants[0]
    with artifact_draft(output, overwrite=options.overwrite) as draft:
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=request.name,
            inputs=plain.manifest.inputs,
            outputs=plain.manifest.outputs,
            structure=plain.manifest.structure,
            task=request.task,
            variants=(replace(variant, graph=f"graphs/{path.name}"),),
            golden=(),
            parity=Parity(
                oracle="the same graph in ONNX Runtime without graph optimizations",
                tolerances=dict(options.tolerances),
                measured=tuple(measured),
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
                notes=("adopted from an ONNX file: nothing is known of the model it came from", *notes),
            ),
            files={},
            limits=limits,
        )
        graphs = {f"graphs/{name}": path.parent / name for name in plain.manifest.files}
        write_artifact(draft, manifest, {**graphs, **request.files}, points)
    return Artifact.open(output)


def _refuse_options(request: SourceRequest, options: ConvertOptions, signature: Signature) -> None:
    """An option that would do nothing must not look as if it did."""
    if request.weights is not None:
        raise ConversionError("an ONNX file brings its own weights; --weights cannot be given with it")
    if options.dynamic:
        raise ConversionError(
            f"an ONNX file's dims are what they are ({'; '.join(map(str, signature.inputs))}); --dynamic"
            f" cannot be given with it, convert the original model instead"
        )
    if isinstance(request.example_inputs, Mapping):
        names = [spec.name for spec in signature.inputs]
        if unknown := sorted(set(request.example_inputs) - set(names)):
            raise ConversionError(f"there is no input '{unknown[0]}'; the inputs are {', '.join(names)}")


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # ValidationError, DecodeError and what protobuf raises
        text = " ".join(str(error).split())
        raise ConversionError(f"'{path}' is not a valid ONNX model: {text[:400]}") from error


def _opened(plain: Artifact, optimization: str) -> Session:
    options = PlanOptions(device="cpu", graph_optimization=optimization)
    try:
        return open_session(plain, options, SessionOptions(verify=False, warm_up=False))
    except InferError as error:
        raise ConversionError(str(error)) from error
