"""What every new artifact gets, whatever it was made from: files, golden points, manifest, and a first
opening."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from converters.points import Point
from infer.artifact import MANIFEST, Artifact, record_files
from infer.manifest import GoldenPoint, Manifest
from infer.npz import save_npz
from infer.session import open_session

# Golden points prove an artifact again; they are no data set.
_MAX_GOLDEN_BYTES = 8 * 2**20


def write_artifact(
    draft: Path, manifest: Manifest, files: Mapping[str, Path], points: Sequence[Point]
) -> None:
    """Complete `draft`, which holds the graphs: copy `files` to their names, choose golden points from
    `points`, and write `manifest` with both filled in.

    The artifact is then opened as a user would: a manifest that cannot be read back, or a task that
    does not open, is found here and not by the user. Raises what `open_session` raises.
    """
    for name, path in files.items():
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    golden = _write_golden(points, draft)
    manifest = replace(manifest, golden=golden, files=record_files(draft))
    (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    with open_session(Artifact.open(draft)) as session:
        session.task  # noqa: B018


def _write_golden(points: Sequence[Point], draft: Path) -> tuple[GoldenPoint, ...]:
    """The cheapest point first, because a session warms up with it, and the most varied one."""
    (draft / "golden").mkdir()
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


def versions() -> dict[str, str]:
    """Versions of what makes an artifact here."""
    found = {"python": platform.python_version()}
    for package in ("infer-onnx", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, as manifests say it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
