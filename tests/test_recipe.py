"""Pickled sessions: a recipe goes to the other process, and the same artifact is opened there."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.options import BatchOptions
from infer.session import open_artifact, open_session
from tests.tiny import classifier, make_artifact

X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)

OPEN: Mapping[str, Callable[..., Any]] = {"session": infer.load, "live": infer.LiveSession}


def ones(inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """An encoder of a module, which can be pickled."""
    return {"x": np.ones((len(inputs), 10), np.float32)}


def answer(session: infer.Session, x: np.ndarray) -> np.ndarray:
    """What another process does with a session that was sent to it."""
    with session:
        return session.run({"x": x})["logits"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("recipe") / "net.infer")


def test_another_process_answers_alike(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session and a live one go to a process that was started anew, though this one left the folder from
    which it opened them."""
    monkeypatch.chdir(artifact.parent)
    with infer.load("net.infer") as session, infer.LiveSession("net.infer") as live:
        monkeypatch.chdir("/")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = [pool.submit(answer, each, X).result(60) for each in (session, live)]
        expected = session.run({"x": X})["logits"]
    for each in found:
        np.testing.assert_array_equal(each, expected)


@pytest.mark.parametrize("kind", OPEN)
def test_the_options_go_along(artifact: Path, kind: str) -> None:
    """Those of the plan, of the session and of the batcher, and functions of a module."""
    options = {"num_threads": 1, "spinning": False, "refuse_nan": True, "encode": ones}
    with OPEN[kind](artifact, **options, batching=BatchOptions(max_rows=3)) as session:
        with pickle.loads(pickle.dumps(session)) as again:
            assert type(again) is type(session)
            assert again.plan == session.plan
            assert again(["anything"])[0]["logits"].shape == (2,)
            with pytest.raises(infer.FeedError, match="NaN"):
                again.run({"x": X * np.nan})
            with again.hold() if kind == "live" else again as opened:
                assert opened.batcher.options.max_rows == 3


def test_a_plan_that_was_given_goes_along(artifact: Path) -> None:
    """It is not made anew from wishes that nobody had."""
    with infer.load(artifact, num_threads=1) as first:
        with open_session(open_artifact(artifact), plan=first.plan) as session:
            with pickle.loads(pickle.dumps(session)) as again:
                assert again.plan == first.plan


def test_a_live_session_sends_the_version_that_serves(artifact: Path, tmp_path: Path) -> None:
    """Not the one that it began with."""
    newer = make_artifact(tmp_path / "newer.infer", classifier(8))
    with infer.LiveSession(artifact) as live:
        live.swap(newer)
        with pickle.loads(pickle.dumps(live)) as again:
            assert again.artifact == live.artifact
            np.testing.assert_array_equal(again.run({"x": X})["logits"], live.run({"x": X})["logits"])


@pytest.mark.parametrize("kind", OPEN)
def test_another_artifact_at_the_path_is_refused(kind: str, artifact: Path, tmp_path: Path) -> None:
    """Its answers would be others; the error names both digests."""
    path = tmp_path / "net.infer"
    shutil.copytree(artifact, path)
    with OPEN[kind](path) as session:
        sent = pickle.dumps(session)
        digest = session.artifact.digest
    shutil.rmtree(path)
    make_artifact(path, classifier(8))
    with pytest.raises(infer.ArtifactError, match=rf"is another artifact than .* expected {digest[:12]}"):
        pickle.loads(sent)


def test_a_plain_file_is_compared_whole(tmp_path: Path) -> None:
    """It has no digest, and one byte of another weight is seen all the same."""
    path = tmp_path / "net.onnx"
    path.write_bytes(classifier().SerializeToString())
    with infer.load(path) as session:
        sent = pickle.dumps(session)
    pickle.loads(sent).close()
    path.write_bytes(classifier(8).SerializeToString())
    with pytest.raises(infer.ArtifactError, match=r"net\.onnx' is another artifact"):
        pickle.loads(sent)


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("name", ["encode", "decode"])
def test_a_function_that_cannot_be_pickled_is_named(artifact: Path, kind: str, name: str) -> None:
    """The error says which it is, and what to do."""
    with OPEN[kind](artifact, **{name: lambda *inputs: inputs}) as session:
        with pytest.raises(
            infer.InferError, match=rf"with {name}=<function .*; use a function of a module"
        ):
            pickle.dumps(session)


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy])
def test_copies_are_refused(artifact: Path, kind: str, take: Callable[[object], object]) -> None:
    """Pickling opens anew elsewhere, which is asked for; copying would do so without being seen."""
    with OPEN[kind](artifact) as session:
        with pytest.raises(infer.InferError, match="is not copied; threads can share it"):
            take(session)


@pytest.mark.parametrize("kind", OPEN)
def test_a_closed_session_is_not_sent(artifact: Path, kind: str) -> None:
    """It would be open on the other side."""
    session = OPEN[kind](artifact)
    session.close()
    with pytest.raises(infer.SessionClosedError):
        pickle.dumps(session)
