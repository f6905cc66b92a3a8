"""The folder a search works in: a copy of the artifact, graphs that were tried, and verdicts so far.

It lies beside the output. A search that was interrupted goes on from it, if nothing that matters changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from infer import schema
from infer.artifact import Artifact
from infer.drafts import file_draft
from infer.graphfile import read_graph_file
from infer.graphwriting import save
from infer.manifest import FileRecord, Manifest, Variant
from infer.optimizer.canonical import canonical
from infer.optimizer.resuming import STATE, digest_of
from infer.optimizer.verdict import Verdict


def graph_of(name: str) -> str:
    """The path, in the folder, of what is tried under a name."""
    return f"tried/{name}.onnx"


class Workshop:
    """`key` names all that verdicts depend on; another key's leftovers are cleared away."""

    def __init__(self, folder: Path, artifact: Artifact, key: str) -> None:
        self.folder = folder
        self._key = key
        self._written = ""
        self.verdicts: list[Verdict] = self._left_over()
        self.resumed = bool(self.verdicts)
        if not self.resumed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name in artifact.manifest.files:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.file(name), target)
        self.reference = artifact.manifest.variants[0]
        self._manifest: Manifest = replace(
            artifact.manifest,
            files={name: replace(file, sha256=None) for name, file in artifact.manifest.files.items()},
        )

    def _left_over(self) -> list[Verdict]:
        try:
            data = schema.parse((self.folder / STATE).read_bytes())
            if not isinstance(data, dict) or data.get("key") != self._key:
                return []
            found = [schema.decode(Verdict, each, "verdict") for each in data["verdicts"]]
            begun, self._written = data["begun"], data["written"]
        except (OSError, KeyError, TypeError, schema.SchemaError):
            return []
        if begun:
            why = (
                "the process ended while it was tried, as where a library crashes or memory runs out;"
                f" remove {self.folder.name} to try it again"
            )
            found.append(Verdict(begun, False, why, exact=False))
        return [v for v in found if v.graph is None or (self.folder / v.graph).is_file()]

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """If the process ends within, that is the verdict when a search goes on from here."""
        self._save(begun=name)
        try:
            yield
        finally:
            self._save()

    def known(self, name: str) -> Verdict | None:
        """The verdict that was reached before, if it was."""
        return next((verdict for verdict in self.verdicts if verdict.name == name), None)

    def note(self, verdict: Verdict) -> Verdict:
        """Keep a verdict, whatever happens next, in the place of one reached before."""
        self.verdicts = [each for each in self.verdicts if each.name != verdict.name] + [verdict]
        self._save()
        return verdict

    def forget(self, stale: Callable[[Verdict], bool]) -> None:
        """Drop verdicts that hold no longer."""
        self.verdicts = [verdict for verdict in self.verdicts if not stale(verdict)]
        self._save()

    def leave(self, output: Path) -> None:
        """Keep all of it for another time, which may replace what was written to `output` now."""
        self._written = digest_of(output)
        self._save()

    def _save(self, *, begun: str = "") -> None:
        with file_draft(self.folder / STATE) as draft:
            verdicts = [schema.encode(each) for each in self.verdicts]
            data = {"key": self._key, "verdicts": verdicts, "begun": begun, "written": self._written}
            draft.write_text(json.dumps(data), encoding="utf-8")

    def load(self) -> ir.Model:
        """The reference's graph, to be rewritten."""
        return canonical(self.folder / self.reference.graph)

    def write(self, model: ir.Model, name: str) -> tuple[str, int]:
        """Save a graph; its path in the folder, and its size in bytes."""
        graph = graph_of(name)
        for old in self.folder.glob(f"{graph}*"):
            old.unlink()
        return graph, save(model, self.folder / graph)

    def discard(self, graph: str) -> None:
        """Remove a graph that was not kept."""
        for file in self.folder.glob(f"{graph}*"):
            file.unlink()

    def artifact(self, *graphs: str) -> Artifact:
        """The artifact as if these graphs were its only variants, called as they are."""
        variants, files = [], dict(self._manifest.files)
        for graph in graphs:
            outline = read_graph_file(self.folder / graph)
            variants.append(Variant(graph, graph, "", outline.opset, 0))
            folder = PurePosixPath(graph).parent
            for path in {graph, *(str(folder / location) for location in outline.external_files)}:
                files[path] = FileRecord(None, (self.folder / path).stat().st_size)
        return Artifact(self.folder, replace(self._manifest, variants=tuple(variants), files=files), None)

    def clear(self) -> None:
        """Remove the folder: all that was worth it is in the output."""
        shutil.rmtree(self.folder, ignore_errors=True)
