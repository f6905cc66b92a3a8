"""Writing whole or not at all: a draft beside the target, which takes its place at the very end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infer.artifact import MANIFEST
from infer.errors import ArtifactError, InputError


@contextmanager
def artifact_draft(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A fresh folder that becomes `path` if the block succeeds, and vanishes if it does not.

    An existing artifact at `path` is replaced only with `overwrite`, and only at the very
    end; anything else there is never touched. Raises `ArtifactError`.
    """
    with folder_draft(path, MANIFEST, "an artifact", overwrite=overwrite) as draft:
        yield draft


@contextmanager
def folder_draft(path: Path, mark: str, what: str, *, overwrite: bool) -> Iterator[Path]:
    """As `artifact_draft`, for folders of another kind: `mark` is the file that tells them, and `what` they
    are called in errors."""
    check_target(path, mark, what, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent))
    try:
        _share(draft, 0o777)
        yield draft
        _replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_target(path: Path, mark: str = MANIFEST, what: str = "an artifact", *, overwrite: bool) -> None:
    """Refuse a place where no artifact, or other folder with the file `mark`, may be written. Raises
    `ArtifactError`."""
    if any("\ud800" <= character <= "\udfff" for character in str(path)):
        raise ArtifactError(
            f"'{path}' is not UTF-8, and ONNX Runtime opens no such path; choose another name"
        )
    if path.exists() or path.is_symlink():
        if not (path / mark).is_file():
            raise ArtifactError(f"'{path}' exists and is not {what}; choose another name")
        if not overwrite:
            raise ArtifactError(f"'{path}' exists; replace it with --force, or choose another name")


def _replace(draft: Path, path: Path) -> None:
    for file in draft.rglob("*"):
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
    if not path.exists():
        draft.rename(path)
        return
    # a folder cannot be renamed over another: the old one steps aside, and back if that fails
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(aside)
    try:
        draft.rename(path)
    except BaseException:
        with suppress(OSError):
            aside.rename(path)
        raise
    if aside.is_symlink():
        aside.unlink()  # the link was replaced, not the artifact behind it
    else:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_draft(path: Path) -> Iterator[Path]:
    """A file that becomes `path` if the block succeeds, and vanishes if it fails. Raises `InputError`.

    A link stays, and leads to the new file. A pipe or a device is no place for a file: once the draft is
    whole, it is written into it.
    """
    if path.is_dir():
        raise InputError(f"cannot write '{path}': it is a folder; give the name of a file")
    stream = path.exists() and not path.is_file()
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if not stream and not target.parent.is_dir():
        raise InputError(f"cannot write '{path}': there is no folder '{target.parent}'")
    if not stream and target.is_symlink():
        raise InputError(f"cannot write '{path}': it is a link that leads back to itself; remove it")
    draft: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=None if stream else target.parent)
        draft = Path(name)
        os.close(handle)
        _share(draft, 0o666)
        yield draft
        if stream:
            with draft.open("rb") as whole, path.open("wb") as into:
                shutil.copyfileobj(whole, into)
        else:
            draft.replace(target)
    except OSError as error:
        raise InputError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _share(draft: Path, mode: int) -> None:
    """tempfile makes everything private; what is written is as readable as the user's other files."""
    umask = os.umask(0)
    os.umask(umask)
    draft.chmod(mode & ~umask)
