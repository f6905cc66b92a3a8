"""Takes a plain `.onnx` file as an artifact: it has a signature and nothing that was proved.

An input for which the graph has an initializer, as its default, is no input here: it cannot be fed.
"""

from __future__ import annotations

import os
from pathlib import Path

from infer.artifact import Artifact, contained, reading
from infer.errors import ArtifactError, IntegrityError
from infer.graphfile import read_graph_file
from infer.manifest import FORMAT_VERSION, FileRecord, Manifest, Provenance, Variant


def artifact_of_graph(path: Path) -> Artifact:
    """An artifact around the model at `path`, made in memory; its folder is the model's.

    Raises `ArtifactError`.
    """
    with reading(path):
        if path.is_dir():
            raise ArtifactError(
                f"'{path}' is a folder, but a file was expected; rename it to end in .infer"
            )
        graph = read_graph_file(path)
    try:
        contained(path.parent, path.name)
    except IntegrityError:
        path = Path(os.path.realpath(path))  # the caller named this link, and so means the file it leads to
    files: dict[str, FileRecord] = {}
    for name in (path.name, *sorted(graph.external_files)):
        file = contained(path.parent, name)
        with reading(file):
            if not file.is_file():
                raise ArtifactError(
                    f"'{path}' keeps weights in '{name}', which is not beside it; copy both files"
                )
            files[name] = FileRecord(sha256=None, size_bytes=file.stat().st_size)
    variant = Variant(
        name="onnx",
        graph=path.name,
        precision="as exported",
        opset=graph.opset,
        size_bytes=sum(record.size_bytes for record in files.values()),
    )
    return Artifact(
        path.parent,
        Manifest(
            format_version=FORMAT_VERSION,
            name=path.stem,
            inputs=graph.signature.inputs,
            outputs=graph.signature.outputs,
            structure={"dict": {spec.name: spec.name for spec in graph.signature.outputs}},
            task=None,
            variants=(variant,),
            golden=(),
            parity=None,
            provenance=Provenance(
                source=str(path),
                source_class=None,
                weights_sha256=None,
                parameters=None,
                attempts=(),
                patches=(),
                versions={},
                created="",
                notes=("a plain ONNX file: nothing about it was proved",),
            ),
            files=files,
        ),
        manifest_sha256=None,
    )
