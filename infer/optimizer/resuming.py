"""Whether a search may go on from what an earlier one left."""

from __future__ import annotations

import hashlib
import json
import pickle
import uuid
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

from infer import schema
from infer.artifact import MANIFEST, Artifact
from infer.machine import this_machine
from infer.optimizer.material import Material
from infer.optimizer.outcome import OptimizeOptions, runtime_of

STATE = "state.json"
"""The file in a search's folder that has its key and its verdicts."""


def key_of(artifact: Artifact, options: OptimizeOptions, targets: Collection[str], found: Material) -> str:
    """Changes with all that verdicts depend on."""
    data = options.data
    said = [
        artifact.manifest.to_json(),
        str(artifact.path.resolve()),
        # a plain graph's manifest has no digests
        [_stamp(artifact.file(name)) for name in sorted(artifact.manifest.files)],
        [str(budget) for budget in options.budgets],
        [str(data), *_stamps(data)] if isinstance(data, Path) else data is not None and _digest(data),
        found.digest,
        options.objective,
        options.gate_s,
        options.device,
        options.num_threads,
        this_machine().fingerprint,
        [runtime_of(name) for name in targets],
        [version(package) for package in ("infer-onnx", "onnx-ir", "numpy")],
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _stamp(path: Path) -> list[object]:
    found = path.stat()
    return [str(path), found.st_mtime_ns, found.st_size]


def _stamps(path: Path) -> list[list[object]]:
    """Of a file, or of all in a folder, whose names may be labels."""
    return [_stamp(each) for each in sorted([path, *path.rglob("*")]) if each.exists()]


def _digest(data: object) -> str:
    """Of data in memory; what has no stable bytes is taken to be new each time."""
    try:
        return hashlib.sha256(pickle.dumps(data)).hexdigest()
    except Exception:  # any object may refuse, in any way
        return uuid.uuid4().hex


def left_over(folder: Path, output: Path, key: str | None = None) -> bool:
    """Whether `output` is as a search in `folder` left it when it did not come to its end; and whether that
    had this key, if one is given."""
    try:
        data = schema.parse((folder / STATE).read_bytes())
        assert isinstance(data, dict)
        return data["written"] == digest_of(output) and key in (None, data["key"])
    except (OSError, KeyError, AssertionError, schema.SchemaError):
        return False


def digest_of(output: Path) -> str:
    """Of an artifact's manifest, which has the digests of all else."""
    return hashlib.sha256((output / MANIFEST).read_bytes()).hexdigest()
