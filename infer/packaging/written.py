"""What is said of a package, and what all of them share."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import InputError

PORT = 8080
"""Where containers answer; KServe expects it there."""

USER = 10001
"""Who containers run as: no user of the host, and no one of importance in the image."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Written:
    """What is said of a package.

    Attributes:
        name: what the model is called there.
        decided: what was chosen, and why.
        checked: what was proved about it here.
        unchecked: what was not, because it needs what is not here.
        lost: what the artifact does and this does not.
        next: commands that go on from here.
    """

    name: str
    decided: dict[str, str]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    lost: tuple[str, ...]
    next: tuple[str, ...]


def model_name(artifact: Artifact, wanted: str | None) -> str:
    """`wanted`, or the artifact's own name, if a model may be called so. Raises `InputError`."""
    name = artifact.manifest.name if wanted is None else wanted
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a model cannot be served as {name!r:.140}: its name becomes a part of paths and URLs, so it"
            f" must have 1 to 128 letters, digits, '.', '_' or '-', and begin with a letter or digit; give"
            f" another one with --name"
        )
    return name


def copy(source: Path, target: Path) -> None:
    """A file of the package, which everyone may read, whoever may read `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
