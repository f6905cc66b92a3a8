"""A peer's own Python environment: made once, whole or not at all, and kept in the zoo's cache.

Peers with equal requirements share one. A peer that needs nothing beyond the project's own environment
runs there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.peers.places import cache
from infer.errors import InferError
from infer.measure.rounds import Progress

INSTALLED = "installed.txt"
"""What was installed, one package a line; written last, so that a folder with it is whole."""

Install = Callable[[Path, Sequence[str], Progress], None]
"""Puts requirements into the environment of a folder. Raises `EnvironmentFailedError`."""


class EnvironmentFailedError(InferError):
    """A peer's requirements cannot be installed."""


def python(requirements: Sequence[str]) -> Path | None:
    """The Python of the environment with these requirements, or None while there is none."""
    if not requirements:
        return Path(sys.executable)
    folder = place(requirements)
    return folder / "bin/python" if (folder / INSTALLED).is_file() else None


def place(requirements: Sequence[str]) -> Path:
    """Where the environment is, or will be: other requirements or another Python go elsewhere."""
    told = "\n".join([sys.version, *sorted(requirements)])
    return cache() / "environments" / hashlib.sha256(told.encode()).hexdigest()[:16]


def prepare(
    requirements: Sequence[str], progress: Progress = lambda _: None, install: Install | None = None
) -> Path:
    """The environment's Python, which is installed now if it was not. Raises `EnvironmentFailedError`."""
    found = python(requirements)
    if found is not None:
        return found
    folder = place(requirements)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context(folder.with_suffix(".lock").open("w"))
        progress("waiting for another process that prepares the same environment")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / INSTALLED).is_file():
            return folder / "bin/python"
        # whoever made these is gone, or it would hold the lock
        for left in (folder, *folder.parent.glob(f".{folder.name}.*.draft")):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        (install or _install)(draft, requirements, progress)
        draft.rename(folder)
    return folder / "bin/python"


def installed(requirements: Sequence[str]) -> list[str]:
    """What is in the environment, as pip tells it."""
    return (place(requirements) / INSTALLED).read_text(encoding="utf-8").splitlines()


def _install(folder: Path, requirements: Sequence[str], progress: Progress) -> None:
    progress("making an environment")
    venv.create(folder, with_pip=True, symlinks=True)
    # scripts of the environment would name the draft; `python -m` does not need them
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    tail: list[str] = []
    with subprocess.Popen(
        [*pip, "install", "--progress-bar", "off", *requirements],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"},
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            tail = [*tail[-20:], line.rstrip()]
            if line.startswith(("Collecting", "Installing", "Building", "Successfully")):
                progress(line.strip()[:200])
    if running.returncode:
        errors = [line for line in tail if line.startswith("ERROR")] or tail[-3:]
        raise EnvironmentFailedError(f"pip cannot install {' '.join(requirements)}: {' '.join(errors)}")
    listed = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True)
    (folder / INSTALLED).write_text(listed.stdout, encoding="utf-8")
