"""The story of a conversion.

source → asked at several points → exporter after exporter, until one answers the same
       → artifact: graph, golden points, manifest with what was measured
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from converters.attempts import Exported, export
from converters.flat import FlatModule
from converters.options import ConvertOptions, check_tolerances
from converters.points import BATCH, Point, make_points
from converters.ready import ready
from converters.source import USUAL_DIMS, Source
from infer.artifact import MANIFEST, Artifact, record_files
from infer.drafts import artifact_draft
from infer.errors import ConversionError
from infer.manifest import (
    FORMAT_VERSION,
    GoldenPoint,
    Manifest,
    Parity,
    Provenance,
    Variant,
)
from infer.npz import save_npz
from infer.session import open_session
from infer.structure import Structure

Progress = Callable[[str], None]

GRAPH = "graphs/fp32.onnx"
# Golden points prove an artifact again; they are no data set.
_MAX_GOLDEN_BYTES = 8 * 2**20


def convert_source(source: Source, output: Path, options: ConvertOptions, progress: Progress) -> Artifact:
    """Convert `source` into an artifact at `output`, or raise and leave nothing there.

    Raises `ConversionError` if it cannot be exported, `ParityError` if it was, but wrongly.
    """
    try:
        with artifact_draft(output, overwrite=options.overwrite) as draft, ready(source) as source:
            progress(f"asking {source.described} for its answers")
            flat = FlatModule(source)
            points = make_points(flat, options.dynamic, usual_axes(source, flat))
            check_tolerances(options.tolerances, [spec.name for spec in points.outputs])
            exported = export(flat, points, draft / GRAPH, options, source.exporters, progress)
            progress("writing the artifact")
            golden = _write_golden(exported.points.points, draft)
            copy_files(source.files, draft)
            manifest = _manifest(source, flat.structure, exported, golden, options, draft)
            (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            # a manifest that cannot be read back, or a task that does not open, is our fault and is
            # found here, not by the user
            with open_session(Artifact.open(draft)) as session:
                session.task  # noqa: B018
    except OSError as error:
        raise ConversionError(f"cannot write '{output}': {error.strerror or error}") from error
    return Artifact.open(output)


def usual_axes(source: Source, flat: FlatModule) -> dict[str, dict[int, str]]:
    """Axes that may vary if nobody says otherwise: the source's own, those its input names tell, or
    the batch. An axis whose size disagrees with an earlier one of the same name is left out."""
    sizes: dict[str, int] = {}
    axes: dict[str, dict[int, str]] = {}
    for name, tensor in zip(flat.input_names, flat.example, strict=True):
        usual = source.dims.get(name) or USUAL_DIMS.get(name) or {0: BATCH}
        axes[name] = {
            axis: dim
            for axis, dim in usual.items()
            if axis < tensor.dim() and sizes.setdefault(dim, tensor.shape[axis]) == tensor.shape[axis]
        }
    return axes


def _write_golden(points: tuple[Point, ...], draft: Path) -> tuple[GoldenPoint, ...]:
    """The cheapest point first, because a session warms up with it, and the most varied one."""
    folder = draft / "golden"
    folder.mkdir()
    by_cost = sorted(points, key=_nbytes)
    chosen = [by_cost[0]]
    rest = [p for p in by_cost[1:] if _nbytes(p) + _nbytes(chosen[0]) <= _MAX_GOLDEN_BYTES]
    if rest:
        chosen.append(max(rest, key=lambda p: len(p.varied)))
    golden = []
    for i, point in enumerate(chosen):
        feeds, outputs = f"golden/{i}-feeds.npz", f"golden/{i}-outputs.npz"
        save_npz(draft / feeds, point.feeds)
        save_npz(draft / outputs, point.outputs)
        golden.append(GoldenPoint(point.name, feeds, outputs))
    return tuple(golden)


def _nbytes(point: Point) -> int:
    return sum(array.nbytes for array in (*point.feeds.values(), *point.outputs.values()))


def copy_files(files: Mapping[str, Path], draft: Path) -> None:
    """Copy each file to its name below `draft`."""
    for name, path in files.items():
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _manifest(
    source: Source,
    structure: Structure,
    exported: Exported,
    golden: tuple[GoldenPoint, ...],
    options: ConvertOptions,
    draft: Path,
) -> Manifest:
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
        golden=golden,
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
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            notes=(*source.notes, *points.notes),
        ),
        files=record_files(draft),
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


def versions() -> dict[str, str]:
    """Versions of what made the artifact."""
    found = {"python": platform.python_version()}
    for package in ("infer-onnx", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
