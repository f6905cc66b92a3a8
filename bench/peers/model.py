"""What a worker is given to load, and what its peer makes of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infer.npz import load_npz
from infer.signature import Array

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Given:
    """A model in all its forms, and how to run it.

    Attributes:
        path: what the peer takes: a source's name, a graph, a folder, an artifact.
        examples: a folder of `.npz` feeds, of real inputs where there are any, to calibrate with.
        made: where the folder is, or will be, that the peer makes of this model: see `once`.
        settings: of the peer's entry in the table.
    """

    path: str
    threads: int
    settings: Mapping[str, str]
    feeds: str
    examples: str
    made: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Given:
        return cls(**{f.name: data[f.name] for f in fields(cls)})

    def once(self, make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills, whole or not at all; the next time it is found."""
        folder = Path(self.made)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
                draft = Path(scratch) / "draft"
                draft.mkdir()
                make(draft)
                draft.rename(folder)
        return folder

    def example(self) -> dict[str, Array]:
        """The feeds that will be timed."""
        return load_npz(Path(self.feeds))

    def calibration(self) -> list[dict[str, Array]]:
        """Feeds of other inputs."""
        return [load_npz(file) for file in sorted(Path(self.examples).glob("*.npz"))]


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked.

    Attributes:
        described: what runs, and on what, with versions.
        prepare: makes of feeds a call without arguments, which is what is timed; all that users do once,
            or that costs nothing, such as wrapping arrays, may be done before.
        answers: the outputs by name, of what such a call returned.
    """

    described: str
    prepare: Callable[[Feeds], Callable[[], Any]]
    answers: Callable[[Any], dict[str, Array]]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return self.answers(self.prepare(feeds)())


def versions(*packages: str) -> str:
    """Such as "openvino 2026.4.1, nncf 3.4.0", of packages of this environment."""
    return ", ".join(f"{package} {version(package)}" for package in packages)
