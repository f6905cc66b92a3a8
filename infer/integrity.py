"""Whether an artifact is what its manifest says: its files, and its graphs before a backend reads them."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import ArtifactError, IntegrityError
from infer.graphfile import read_graph_file
from infer.plan import Plan
from infer.signature import TensorSpec


class Verification(threading.Thread):
    """`artifact.verify_files(but)` beside other work; `result` raises what it raised."""

    def __init__(self, artifact: Artifact, but: Collection[str] = ()) -> None:
        super().__init__(name="infer-verify")
        self._artifact, self._but = artifact, but
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._artifact.verify_files(self._but)
        except Exception as error:
            self._error = error

    def result(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


def graphs_beside(artifact: Artifact, plan: Plan) -> set[str]:
    """The files of graphs that `plan` does not load, which may be most of an artifact's bytes; none if
    those that it loads are not sound."""
    manifest = artifact.manifest
    prepared = {tuned.prepared.graph for tuned in manifest.tuned if tuned.prepared}
    graphs = {*(variant.graph for variant in manifest.variants), *prepared}
    beside = graphs - {part.loaded for part in plan.parts}
    if not beside:
        return set()
    try:
        read = {name for part in plan.parts for name in files_read(artifact, part)}
    except ArtifactError:
        return set()
    return {name for name in manifest.files if name.removesuffix(".data") in beside} - read


def files_read(artifact: Artifact, plan: Plan) -> tuple[str, ...]:
    """The graph that is loaded and the files that it reads. Raises as `check_graph`."""
    return (plan.loaded, *check_graph(artifact, artifact.file(plan.loaded)))


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
