"""Packages: an artifact with what others need to serve it. One file a target, one table.

Whatever a target cannot hold of an artifact, and whatever could not be run here, is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from infer.artifact import Artifact
from infer.drafts import folder_draft
from infer.packaging.docker import Docker
from infer.packaging.kserve import Kserve
from infer.packaging.triton import Triton
from infer.packaging.written import Written

RECORD = "package.json"
"""The file that tells a package from other folders, and holds what was said when it was written."""


class Target(Protocol):
    """Something that serves artifacts. It is a frozen dataclass, whose fields are the options."""

    def write(self, artifact: Artifact, folder: Path, output: Path) -> Written:
        """Fill `folder`, which will be `output`. Raises `InferError`."""
        ...


TARGETS: dict[str, Callable[..., Target]] = {"triton": Triton, "kserve": Kserve, "docker": Docker}


def package(artifact: Artifact, target: Target, output: Path, *, overwrite: bool = False) -> Written:
    """Write `artifact` for `target` at `output`: whole, or not at all.

    An earlier package is replaced with `overwrite`; nothing else is. Raises `ArtifactError`, `InputError`,
    and for Triton what `infer.load` raises.
    """
    with folder_draft(output, RECORD, "a package", overwrite=overwrite) as draft:
        written = target.write(artifact, draft, output)
        text = json.dumps(asdict(written), indent=1, ensure_ascii=False)
        (draft / RECORD).write_text(text + "\n", encoding="utf-8")
    return written
