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
from typing import Any

from converters.points import Point
from infer.artifact import MANIFEST, Artifact, record_files
from infer.errors import ArtifactError, InferError
from infer.feeds import EXAMPLE
from infer.manifest import GoldenPoint, Manifest
from infer.npz import save_npz
from infer.session import Session, open_session

# Golden points prove an artifact again; they are no data set. They take so much, or a part of its graphs.
_MAX_GOLDEN_BYTES, _GOLDEN_PART = 8 * 2**20, 1 / 16


def write_artifact(
    draft: Path, manifest: Manifest, files: Mapping[str, Path], points: Sequence[Point]
) -> None:
    """Complete `draft`, which holds the graphs: copy `files` to their names, choose golden points from
    `points`, and write `manifest` with both filled in.

    The artifact is then opened as a user would: a manifest that cannot be read back, or a task that
    cannot answer, is found here and not by the user. Raises what `open_session` raises.
    """
    for name, path in files.items():
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    graphs_bytes = sum(path.stat().st_size for path in (draft / "graphs").iterdir())
    golden = _write_golden(points, draft, max(_MAX_GOLDEN_BYTES, int(_GOLDEN_PART * graphs_bytes)))
    manifest = replace(manifest, golden=golden, files=record_files(draft))
    (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    with open_session(Artifact.open(draft)) as session:
        _try_task(session, min(points, key=_nbytes))


def _try_task(session: Session, point: Point) -> None:
    """Let the task name its tensors and decode one point. Raises `ArtifactError`."""
    task: Any = session.task
    for specs, role in ((session.signature.inputs, "input"), (session.signature.outputs, "output")):
        name, names = getattr(getattr(task, "spec", None), role, None), [spec.name for spec in specs]
        if isinstance(name, str) and name not in names:
            raise _unknown_tensor(session, role, name, names)
    if not hasattr(task, "decode"):
        return
    rows = max((array.shape[0] for array in point.outputs.values() if array.ndim), default=1)
    try:
        task.decode(point.outputs, [None] * rows)
    except InferError:
        raise
    except KeyError as error:
        if error.args[0] not in point.outputs:
            raise _unknown_tensor(session, "output", error.args[0], list(point.outputs)) from error
    except Exception:
        # nothing is known about what went in, such as the size of a picture, and this task must know it
        return


def _unknown_tensor(session: Session, role: str, name: object, names: list[str]) -> ArtifactError:
    task = session.artifact.manifest.task
    return ArtifactError(
        f"the task '{task.name if task else 'tensors'}' names the {role} '{name}', but the graph's {role}s"
        f" are {', '.join(names)}; correct its spec"
    )


def _write_golden(points: Sequence[Point], draft: Path, most_bytes: int) -> tuple[GoldenPoint, ...]:
    """The cheapest point first, because a session warms up with it, the example, at whose sizes it is
    measured, and the most varied one; as far as there is room for them. Of the example, feeds alone where
    its outputs have none: without them nobody would know what the model is asked."""
    (draft / "golden").mkdir()
    by_cost = sorted(points, key=_nbytes)
    chosen = [by_cost[0]]

    def others() -> list[Point]:
        return [point for point in by_cost if all(point is not each for each in chosen)]

    def fitting() -> list[Point]:
        left = most_bytes - sum(map(_nbytes, chosen))
        return [point for point in others() if _nbytes(point) <= left]

    chosen += [point for point in fitting() if point.name == EXAMPLE]
    if rest := fitting():
        chosen.append(max(rest, key=lambda p: len(p.varied)))
    feeds_alone = [replace(point, outputs={}) for point in others() if point.name == EXAMPLE]
    chosen += [point for point in feeds_alone if _nbytes(point) <= most_bytes]
    golden = []
    for i, point in enumerate(chosen):
        feeds, outputs = f"golden/{i}-feeds.npz", f"golden/{i}-outputs.npz" if point.outputs else None
        save_npz(draft / feeds, point.feeds)
        if outputs is not None:
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
