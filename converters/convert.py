"""The story of a conversion.

source → asked at several points → exporter after exporter, until one answers the same
       → artifact: graph, golden points, manifest with what was measured
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from converters.attempts import Exported, export
from converters.census import census
from converters.flat import FlatModule
from converters.options import ConvertOptions, check_tolerances
from converters.points import BATCH, Points, make_points
from converters.pristine import pristine
from converters.ready import ready
from converters.source import USUAL_DIMS, Dims, Source
from converters.writing import now, versions, write_artifact
from infer.artifact import Artifact
from infer.drafts import artifact_draft
from infer.errors import ConversionError
from infer.manifest import (
    FORMAT_VERSION,
    Manifest,
    Parity,
    Provenance,
    Variant,
)
from infer.structure import Structure

Progress = Callable[[str], None]

GRAPH = "graphs/fp32.onnx"


def convert_source(source: Source, output: Path, options: ConvertOptions, progress: Progress) -> Artifact:
    """Convert `source` into an artifact at `output`, or raise and leave nothing there.

    Raises `ConversionError` if it cannot be exported, `ParityError` if it was, but wrongly.
    """
    try:
        with artifact_draft(output, overwrite=options.overwrite) as draft, ready(source) as source:
            progress(f"asking {source.described} for its answers")
            flat = FlatModule(source)
            points = _points(source, flat, options)
            check_tolerances(options.tolerances, [spec.name for spec in points.outputs])
            with pristine(flat.module):
                counted = census(flat, flat.example)
            exported = export(flat, points, draft / GRAPH, options, source.exporters, progress)
            progress("writing the artifact")
            manifest = _manifest(source, points.points[0].structure, exported, options, counted)
            write_artifact(draft, manifest, source.files, exported.proved)
    except OSError as error:
        raise ConversionError(f"cannot write '{output}': {error.strerror or error}") from error
    return Artifact.open(output)


def _points(source: Source, flat: FlatModule, options: ConvertOptions) -> Points:
    try:
        return make_points(flat, options.dynamic, usual_axes(source, flat, options.dynamic), source.limits)
    except ConversionError as error:
        if widened := next((note for note in source.notes if "widened" in note), None):
            raise ConversionError(
                f"{error}. Before it was asked, {widened}; a forward that casts to half precision itself"
                f" does not fit that, so cast with x.to(self.weight.dtype)"
            ) from error
        raise


def usual_axes(source: Source, flat: FlatModule, explicit: Dims) -> dict[str, dict[int, str]]:
    """Axes that may vary if nobody says otherwise: the source's own, those its input names tell, or
    the batch. An axis whose size disagrees with an earlier one of the same name is left out, and so is
    one that `explicit` names."""
    tensors = list(zip(flat.input_names, flat.example, strict=True))
    sizes: dict[str, int] = {}
    for name, tensor in tensors:
        for axis, dim in explicit.get(name, {}).items():
            if 0 <= axis < tensor.dim():
                sizes.setdefault(dim, tensor.shape[axis])
    axes: dict[str, dict[int, str]] = {}
    for name, tensor in tensors:
        usual = source.dims.get(name) or USUAL_DIMS.get(name) or {0: BATCH}
        axes[name] = {
            axis: dim
            for axis, dim in usual.items()
            if axis < tensor.dim()
            and axis not in explicit.get(name, {})
            and sizes.setdefault(dim, tensor.shape[axis]) == tensor.shape[axis]
        }
    return axes


def _manifest(
    source: Source,
    structure: Structure,
    exported: Exported,
    options: ConvertOptions,
    counted: dict[str, int],
) -> Manifest:
    """All but the golden points and files, which are known once they are written."""
    outcome, points = exported.outcome, exported.points
    original = getattr(source.module, "original_name", None) or type(source.module).__name__
    return Manifest(
        format_version=FORMAT_VERSION,
        name=source.name,
        inputs=points.inputs,
        outputs=points.outputs,
        structure=structure,
        task=source.task,
        variants=(Variant("fp32", GRAPH, "float32", outcome.exporter.opset, outcome.size_bytes),),
        golden=(),
        parity=Parity(
            oracle=f"{original} in torch {torch.__version__} on cpu",
            tolerances=dict(options.tolerances),
            measured=outcome.measured,
            mismatch_allowed=outcome.reason is not None,
        ),
        provenance=Provenance(
            source=source.described,
            source_class=original,
            weights_sha256=weights_sha256(source.module),
            parameters=sum(p.numel() for p in source.module.parameters()),
            attempts=exported.attempts,
            patches=outcome.patches,
            versions=versions(),
            created=now(),
            notes=(*source.notes, *points.notes),
            census=counted,
        ),
        files={},
        limits=dict(outcome.limits),
    )


def weights_sha256(module: Any) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
