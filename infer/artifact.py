"""Artifact: a folder of graphs and a manifest. Opening reads only the manifest.

    net.infer/
      manifest.json     see infer/manifest.py
      graphs/           fp32.onnx, and fp32.onnx.data beside it for large weights
      golden/           feeds and expected outputs, .npz
      files/            what the task needs: tokenizer.json, …

Nothing in it is ever executed or unpickled. Every file is listed with size and sha256. These
find damage; they do not prove who made it: to pin one artifact, compare its `digest`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infer.errors import ArtifactError, IntegrityError
from infer.manifest import FileRecord, Manifest
from infer.signature import Array

MANIFEST = "manifest.json"
# Parsed JSON takes some twenty times its size; a manifest with 20,000 labels has under 1 MiB.
_MAX_MANIFEST_BYTES = 8 * 2**20
_CHUNK_BYTES = 2**20
_MAX_SHOWN_PATH = 200


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: the folder of its files and its manifest.

    That of a plain `.onnx` file, which `infer.open_artifact` makes, is the folder the file lies in; it has
    no manifest on the disk, and `manifest_sha256` is None.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str | None

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Artifact:
        """Read the manifest of the artifact at `path`. Raises `ArtifactError`."""
        with reading(path):
            return Artifact._open(Path(path))

    @staticmethod
    def _open(folder: Path) -> Artifact:
        if not folder.exists():
            raise ArtifactError(f"there is no artifact at '{folder}'; check the path")
        if not folder.is_dir():
            raise ArtifactError(
                f"'{folder}' is a file, but an artifact is a folder with a {MANIFEST};"
                f" make one with: infer convert SOURCE -o OUT.infer"
            )
        file = contained(folder, MANIFEST)
        if file.exists() and not file.is_file():  # a pipe or a device would never end
            raise ArtifactError(f"'{file}' is not a file, so '{folder}' is not an artifact")
        try:
            size_bytes = file.stat().st_size
            if size_bytes > _MAX_MANIFEST_BYTES:
                raise ArtifactError(
                    f"'{file}' has {size_bytes} bytes; a manifest may have {_MAX_MANIFEST_BYTES}"
                )
            text = file.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"'{folder}' has no {MANIFEST}, so it is not an artifact; make one with:"
                f" infer convert SOURCE -o OUT.infer"
            ) from error
        return Artifact(folder, Manifest.from_json(text, f"'{file}'"), hashlib.sha256(text).hexdigest())

    @property
    def location(self) -> Path:
        """What `infer.open_artifact` opens it from: its folder, or the plain `.onnx` file."""
        return self.path / self.manifest.variants[0].graph if self.manifest_sha256 is None else self.path

    @property
    def digest(self) -> str:
        """sha256 of the manifest as it was opened, and so of everything it lists.

        Raises `ArtifactError` for a plain `.onnx` file, which has none.
        """
        if self.manifest_sha256 is None:
            raise ArtifactError(
                f"'{self.manifest.provenance.source}' is a plain .onnx file without a manifest, so it has"
                f" no digest; compare the file's own sha256, or make an artifact of it with: infer convert"
            )
        return self.manifest_sha256

    def file(self, name: str) -> Path:
        """The path of a listed file, proved to lie inside the artifact and to have its size.

        Raises `IntegrityError` if it is absent, leaves the folder, or has another size.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise IntegrityError(f"'{self.path}' has no file '{name}' in its manifest")
        path = contained(self.path, name)
        with reading(path):
            present, size_bytes = path.is_file(), path.stat().st_size if path.is_file() else 0
        if not present:
            raise IntegrityError(f"'{self.path}' lacks its file '{name}'; copy the whole folder again")
        if size_bytes != record.size_bytes:
            raise IntegrityError(
                f"'{path}' has {size_bytes} bytes, but the manifest recorded {record.size_bytes};"
                f" the artifact is truncated or was changed, copy it again"
            )
        return path

    def verify_files(self, but: Collection[str] = ()) -> None:
        """Read every file, but those of these names, and compare its sha256 with the manifest. Raises
        `IntegrityError`, and `ArtifactError` for a file that cannot be read."""
        for name, record in self.manifest.files.items():
            path = self.file(name)
            if record.sha256 is None or name in but:
                continue
            with reading(path):
                found = sha256(path)
            if found != record.sha256:
                raise IntegrityError(
                    f"'{path}' differs from the sha256 in the manifest; the artifact was damaged"
                    f" or changed, copy it again or convert the model again"
                )

    def golden(self) -> Iterator[tuple[str, dict[str, Array], dict[str, Array]]]:
        """Each golden point that has outputs: its name, feeds, and the source's outputs for them."""
        from infer.npz import load_npz  # zipfile is slow to import

        for point in self.manifest.golden:
            if point.outputs is not None:
                yield point.name, load_npz(self.file(point.feeds)), load_npz(self.file(point.outputs))

    def golden_feeds(self) -> Iterator[dict[str, Array]]:
        """Those of all golden points."""
        from infer.npz import load_npz  # zipfile is slow to import

        for point in self.manifest.golden:
            yield load_npz(self.file(point.feeds))


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says about `path` in the block, as an `ArtifactError`."""
    try:
        yield
    except OSError as error:
        where = os.fspath(error.filename or path)
        where = where if len(where) <= _MAX_SHOWN_PATH else f"{where[:_MAX_SHOWN_PATH]}…"
        raise ArtifactError(f"cannot read '{where}': {error.strerror or error}") from error
    except ValueError as error:  # NUL, or a character no file name can hold
        raise ArtifactError(f"{os.fspath(path)!r:.200} is no name of a file ({error})") from error


def contained(folder: Path, name: str) -> Path:
    """`folder / name`, proved not to leave `folder`, through `..` or through links.

    In a snapshot of a Hugging Face cache, links into the blobs beside the snapshots are welcome.
    Hard links cannot be told from files. Raises `IntegrityError`.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise IntegrityError(f"the manifest names '{name}', which is not a path inside '{folder}'")
    path = folder.joinpath(*parts)
    real = Path(os.path.realpath(folder))  # unlike resolve(), it has no error of its own for circular links
    roots = [real, *(p.parent / "blobs" for p in real.parents if p.name == "snapshots")]
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(root) for root in roots):
        raise IntegrityError(f"'{path}' is a link that leaves the artifact; copy its target instead")
    return path


def sha256(path: Path) -> str:
    """The sha256 of a file's contents, in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file below `folder`, by its path inside."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
