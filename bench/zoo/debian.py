"""Data sets that Debian packages carry, unpacked without installing them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.zoo.training import cache


class NoDataError(RuntimeError):
    """The data cannot be had on this machine; the message says what would bring it."""


def package(name: str) -> Path:
    """The unpacked files of the Debian package `name`, fetched on first use. Raises `NoDataError`."""
    path = cache() / "debian" / name
    if path.is_dir():
        return path
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoDataError(f"the data is in the Debian package {name}, and this machine has no apt-get")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        folder = Path(scratch)
        if not (
            _fetch(name, folder) or (_run(["apt-get", "update", "-qq"], folder) and _fetch(name, folder))
        ):
            raise NoDataError(f"apt-get cannot fetch the Debian package {name}; try: apt-get update")
        (file,) = folder.glob("*.deb")
        if not _run(["dpkg-deb", "-x", str(file), "unpacked"], folder):
            raise NoDataError(f"the Debian package {name} cannot be unpacked")
        (folder / "unpacked").rename(path)
    return path


def _fetch(name: str, folder: Path) -> bool:
    return _run(["apt-get", "download", "-qq", name], folder) and any(folder.glob("*.deb"))


def _run(command: list[str], folder: Path) -> bool:
    return (
        subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300).returncode == 0
    )
