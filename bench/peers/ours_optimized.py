"""What `infer optimize` makes of the artifact, in a worker like its peers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.optimized import options_of
from bench.peers import ours
from bench.peers.model import Given, Loaded
from infer.optimizer import optimize
from infer.session import open_artifact

MADE = "optimized.infer"


def load(given: Given) -> Loaded:
    """The whole search once, with the family's own data, of which the gates judge what calibration did not
    see; then the artifact that it gave, as any."""
    path = Path(given.path)
    exact = given.settings["answers"] == "equal"

    def make(folder: Path) -> None:
        artifact = open_artifact(path)
        options = options_of(path.stem, artifact, exact=exact)
        options = replace(options, num_threads=ours.limit(given))
        optimize(artifact, folder / MADE, options)

    folder = given.once(make)
    return ours.load(replace(given, path=str(folder / MADE)))
