"""Where peers keep what is made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository, which a worker has on its path."""


def cache() -> Path:
    """The folder `peers` in the zoo's cache: below $INFER_ZOO_CACHE, or ~/.cache/infer-zoo.

    As `bench.zoo.training.cache`, which imports torch; peers' environments may have none.
    """
    path = Path(os.environ.get("INFER_ZOO_CACHE") or Path.home() / ".cache/infer-zoo") / "peers"
    path.mkdir(parents=True, exist_ok=True)
    return path


def sources_hash(places: Sequence[Path], also: Sequence[str] = ()) -> str:
    """Changes with any Python file there, of folders and of files named, and with any text of `also`."""
    told = hashlib.sha256("\n".join(also).encode())
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            told.update(str(file.relative_to(place.parent)).encode() + b"\0" + file.read_bytes())
    return told.hexdigest()[:16]
