"""Models as a library compiled them on this machine: kept in the user's own cache, never in an artifact.

Only the library can read such a file, so nothing can look through it before: it is taken from nobody else.
It lies under its sha256 in a folder that its user alone may enter, and only `infer optimize` writes it. An
artifact names a sha256, so one from elsewhere can at most name what this user compiled.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from infer.drafts import file_draft
from infer.errors import InputError

_MOST = 16
"""So many are kept, the newest; each is about as large as its graph."""


def keep(model: bytes) -> str | None:
    """Write a compiled model into the cache; its sha256, or None if there can be no cache."""
    folder, name = _folder(), hashlib.sha256(model).hexdigest()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(folder):
            return None
        with file_draft(folder / name) as draft:
            draft.write_bytes(model)
        _forget_old(folder)
    except (OSError, InputError):  # a cache that cannot be written only costs time
        return None
    return name


def kept(sha256: str) -> bytes | None:
    """The compiled model with this sha256; None if it is not there, or damaged, or could be another's."""
    folder = _folder()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):  # an artifact says it, and it becomes a path
        return None
    try:
        model = (folder / sha256).read_bytes() if _private(folder) else b""
    except OSError:
        return None
    return model if hashlib.sha256(model).hexdigest() == sha256 else None


def forget(sha256: str) -> None:
    """Remove a compiled model that turned out not to be worth its place."""
    with suppress(OSError):
        (_folder() / sha256).unlink()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infer" / "compiled"


def _private(folder: Path) -> bool:
    """Whether this is a folder, no link to one, which nobody else may enter or change."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _forget_old(folder: Path) -> None:
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-_MOST]:
        with suppress(FileNotFoundError):  # another process forgot it first
            path.unlink()
