"""Whether an artifact is what its manifest says: its files, and its graphs before a backend reads them."""

from __future__ import annotations

import os
import threading
from itertools import zip_longest
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import ArtifactError, IntegrityError
from infer.graphfile import read_graph_file
from infer.signature import TensorSpec


class Verification(threading.Thread):
    """`artifact.verify_files()` beside other work; `result` raises what it raised."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(name="infer-verify")
        self._artifact = artifact
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._artifact.verify_files()
        except Exception as error:
            self._error = error

    def result(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


def check_graph(artifact: Artifact, graph: Path) -> tuple[str, ...]:
    """A graph must be what the manifest says, and read weights only from files of its own artifact: these,
    by their names in the manifest.

    Raises `ArtifactError` and `IntegrityError`.
    """
    found, manifest = read_graph_file(graph), artifact.manifest
    said = (*manifest.inputs, *manifest.outputs)
    for has, says in zip_longest((*found.signature.inputs, *found.signature.outputs), said):
        if has is None or says is None or not _alike(has, says):
            raise ArtifactError(
                f"the graph '{graph}' has {has or 'nothing'} where the manifest says {says or 'nothing'};"
                f" they do not belong together, convert the model again"
            )
    folder = Path(os.path.relpath(graph.parent, artifact.path))
    names = []
    for location in found.external_files:
        name = (folder / location).as_posix()
        if name not in manifest.files:
            raise IntegrityError(
                f"the graph '{graph}' wants to read its weights from '{location}', which is not a"
                f" file of this artifact; it is refused"
            )
        artifact.file(name)
        names.append(name)
    return tuple(names)


def _alike(has: TensorSpec, says: TensorSpec) -> bool:
    """Whether two specs are the same but for the names of their dims."""
    fixed = [[dim if isinstance(dim, int) else None for dim in spec.dims] for spec in (has, says)]
    return (has.name, has.dtype, fixed[0]) == (says.name, says.dtype, fixed[1])
