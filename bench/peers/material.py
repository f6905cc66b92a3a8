"""What a family gives all candidates: artifact, plain export, and feeds of its own inputs; made once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import converters
import infer
from bench.peers import Peer
from bench.peers.model import Given
from bench.peers.ours import SENTENCES
from bench.peers.places import ROOT, cache, sources_hash
from bench.zoo import convert, family, source
from infer.feeds import batch_dim, resized
from infer.measure.rounds import Progress
from infer.npz import load_npz, save_npz
from infer.session import open_artifact
from infer.signature import Array, Signature, TensorSpec
from infer.tasks import load_task

CALIBRATION, JUDGED = 300, 64
"""Feeds to calibrate with (NNCF's documentation suggests 300), and others that answers are compared on."""

_EXPORT_S = 900.0
# what the artifact and the plain export depend on
_PLACES = (
    Path(converters.__file__).parent,
    Path(infer.__file__).parent / "tasks",
    Path(infer.__file__).parent / "manifest.py",
    ROOT / "bench/zoo",
    ROOT / "bench/full_size.py",
    ROOT / "bench/peers/plain_export.py",
    ROOT / "bench/peers/material.py",
)
_PACKAGES = ("torch", "onnx", "onnxscript", "transformers", "numpy")


@dataclass(frozen=True)
class Material:
    """One family, in all its forms.

    Attributes:
        name: of the family, and of what is compared of it.
        folder: where it was made.
        source: as `converters.convert` takes it.
        graph: the plain export; None if `graph_problem` says why there is none.
        graph_axes: which axes of it may vary.
        kinds: what peers can take of it: see `Peer.takes`.
        feeds: of its first real input, one row: what is timed.
        judged: feeds that answers are compared on.
        calibration: a folder of feeds to calibrate with.
    """

    name: str
    folder: Path
    artifact: Path
    source: str
    graph: Path | None
    graph_problem: str | None
    graph_axes: str
    kinds: tuple[str, ...]
    signature: Signature
    feeds: dict[str, Array]
    judged: tuple[dict[str, Array], ...]
    calibration: Path

    def given(self, peer: Peer, threads: int, feeds: Path) -> Given:
        """What the peer's worker is to load."""
        path = {"artifact": self.artifact, "graph": self.graph}.get(peer.takes, self.source)
        told = [*peer.requirements, *(f"{key} {value}" for key, value in peer.settings.items())]
        places = [ROOT / f"{peer.module.replace('.', '/')}.py"]
        if peer.takes == "artifact":
            places += [Path(infer.__file__).parent, ROOT / "bench/optimized.py"]
        key = sources_hash(places, told)
        made = self.folder / "made" / f"{peer.name}-{key}"
        return Given(str(path), threads, dict(peer.settings), str(feeds), str(self.calibration), str(made))


def material(name: str, progress: Progress = lambda _: None) -> Material:
    """Of a family; what is missing is made. Raises `InferError`, `NoDataError`."""
    module = family(name)
    told = [f"{package} {version(package)}" for package in _PACKAGES]
    folder = cache() / "families" / name / sources_hash(_PLACES, told)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.infer"
    if not path.exists():
        progress("converting")
        convert(name, path, progress=progress)
    signature = open_artifact(path).manifest.signature
    found = source(name)
    graph, problem, axes = _plain_export(folder, found, signature, progress)
    feeds = folder / "feeds"
    if not feeds.is_dir():
        progress("encoding its inputs")
        with tempfile.TemporaryDirectory(prefix=".feeds.", dir=folder) as scratch:
            draft = Path(scratch) / "draft"
            _save_feeds(module, path, draft)
            draft.rename(feeds)
    judged = tuple(load_npz(file) for file in sorted((feeds / "judged").glob("*.npz")))
    return Material(
        name=name,
        folder=folder,
        artifact=path,
        source=found,
        graph=graph,
        graph_problem=problem,
        graph_axes=axes,
        kinds=_kinds(module),
        signature=signature,
        feeds=_one_row(signature, judged[0]),
        judged=judged,
        calibration=feeds / "calibration",
    )


def from_sentences(found: Material) -> Material | None:
    """The same family, where every candidate begins with sentences; None if it takes none."""
    if "sentence-transformers" not in found.kinds:
        return None
    sentences = family(found.name).samples()
    judged = tuple({SENTENCES: np.array([text], object)} for text in sentences[:JUDGED])
    return replace(
        found,
        name=f"{found.name}, from sentences",
        kinds=("sentence-transformers",),
        signature=Signature((TensorSpec(SENTENCES, "string", ("batch",)),), ()),
        # all of them, so that batches are of different lengths, as they are in life
        feeds={SENTENCES: np.array(list(sentences), object)},
        judged=judged,
    )


def _kinds(module: Any) -> tuple[str, ...]:
    if not hasattr(module, "folder"):
        return ("artifact", "source", "graph")
    pipeline = (module.folder() / "modules.json").is_file()
    return ("artifact", "source", "graph", "sentence-transformers" if pipeline else "transformers")


def _plain_export(
    folder: Path, name: str, signature: Signature, progress: Progress
) -> tuple[Path | None, str | None, str]:
    """The graph, or why there is none, and which axes vary. A failure is kept, too: it takes minutes."""
    place, said = folder / "plain", folder / "plain" / "said.json"
    if not place.is_dir():
        progress("exporting as PyTorch documents it")
        axes = {
            spec.name: {axis: dim for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
            for spec in signature.inputs
        }
        with tempfile.TemporaryDirectory(prefix=".plain.", dir=folder) as scratch:
            draft = Path(scratch) / "draft"
            draft.mkdir()
            command = [sys.executable, "-m", "bench.peers.plain_export", name, str(draft / "model.onnx")]
            done = subprocess.run(
                [*command, json.dumps(axes)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=_EXPORT_S,
            )
            (draft / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
            failed = f"the plain export fails: {_reason(done.stderr)}" if done.returncode else None
            last = done.stdout.strip().splitlines()[-1:] or [""]
            told = {"problem": failed, "axes": "" if failed else last[0]}
            (draft / "said.json").write_text(json.dumps(told), encoding="utf-8")
            draft.rename(place)
    told = json.loads(said.read_text(encoding="utf-8"))
    return None if told["problem"] else place / "model.onnx", told["problem"], told["axes"]


def _reason(printed: str) -> str:
    """The last line of a traceback that tells what was raised, and what caused it if that is told."""
    raised = [line for line in printed.splitlines() if line and not line[0].isspace() and ": " in line]
    wanted = [line for line in raised if "Error" in line.split(":")[0] or "Exception" in line.split(":")[0]]
    return (wanted or raised or ["no reason given"])[-1][:300]


class _Enough(Exception):  # noqa: N818 - it is no error
    """Ends a task from within its run."""


def _save_feeds(module: Any, artifact: Path, folder: Path) -> None:
    """What the artifact's task makes of the family's inputs, as it would feed it."""
    calibrating, judged = _inputs(module)
    for name, inputs, most in (("calibration", calibrating, CALIBRATION), ("judged", judged, JUDGED)):
        (folder / name).mkdir(parents=True)
        with infer.load(artifact) as session:
            for i, feeds in enumerate(_encoded(session, inputs, most)):
                save_npz(folder / name / f"{i:03}.npz", feeds)


def _inputs(module: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Inputs to calibrate with and others to be judged by; the same ones where there are few."""
    samples = list(module.samples())
    if hasattr(module, "calibration"):
        return list(module.calibration()), samples
    pool = samples
    if hasattr(module, "dataset"):
        inputs = list(module.dataset().inputs)
        # some are pairs of what the task takes, or name where in a file it lies
        pool = inputs if _form(inputs[0]) == _form(samples[0]) else samples
    return (pool[JUDGED:] if len(pool) >= 2 * JUDGED else pool), pool


def _form(value: Any) -> Any:
    return tuple(map(_form, value)) if isinstance(value, tuple) else type(value)


def _encoded(session: infer.Session, inputs: Sequence[Any], most: int) -> Iterator[dict[str, Array]]:
    """Feeds of the first runs for each input, as many of each as are needed for `most` in all."""
    inputs = inputs[:most]
    each = -(-most // len(inputs))
    count = 0
    for value in inputs:
        runs: list[dict[str, Array]] = []

        def run(feeds: Mapping[str, Any], runs: list[dict[str, Array]] = runs) -> dict[str, Array]:
            if len(runs) == each:
                raise _Enough
            runs.append({name: np.array(array) for name, array in feeds.items()})
            return session.run(feeds)

        with contextlib.suppress(_Enough):
            load_task(session.artifact, run)(value)
        for feeds in runs[: most - count]:
            count += 1
            yield feeds


def _one_row(signature: Signature, feeds: Mapping[str, Array]) -> dict[str, Array]:
    batch = batch_dim(signature)
    return resized(signature, feeds, {batch: 1} if batch else {})


def unfit(peer: Peer, found: Material, isa: Sequence[str]) -> str | None:
    """Why a peer that takes such families cannot take this one here."""
    if peer.takes == "graph" and found.graph is None:
        return found.graph_problem
    if peer.isa is not None and peer.isa not in isa:
        return f"its settings are for {peer.isa}, which this machine lacks"
    return None
