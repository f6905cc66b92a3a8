"""Warming up: what runs before a session is handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import infer
from infer.backends.ort import OrtExecutable
from tests.tiny import make_artifact, write

PAIR = (
    "g (int64[batch, length] ids, int64[batch, length] mask) => (int64[batch, length] y)"
    " { y = Add(ids, mask) }"
)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those of the feeds that a backend got."""
    seen: list[Any] = []
    original = OrtExecutable.run

    def noted(self: OrtExecutable, feeds: Any, outputs: Any) -> Any:
        seen.append(feeds.shapes)
        return original(self, feeds, outputs)

    monkeypatch.setattr(OrtExecutable, "run", noted)
    return seen


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("warm") / "net.infer")


@pytest.mark.parametrize(
    ("warm_up", "expected"),
    [
        (False, []),
        ([], []),
        ([{"batch": 1}, {"batch": 8}], [((1, 10),), ((8, 10),)]),
    ],
)
def test_declared_sizes_run_before_the_session_is_handed_over(
    artifact: Path, shapes: list[Any], warm_up: Any, expected: list[Any]
) -> None:
    """Once each, in order, in place of the golden point."""
    with infer.load(artifact, warm_up=warm_up):
        assert shapes == expected


def test_by_default_a_golden_point_runs(artifact: Path, shapes: list[Any]) -> None:
    """As it is."""
    with infer.load(artifact) as session:
        name, feeds, _ = next(session.artifact.golden())
        assert shapes == [(feeds["x"].shape,)], name


def test_feeds_are_made_up_for_a_plain_file(tmp_path: Path, shapes: list[Any]) -> None:
    """Dims that share a name get the same size."""
    path = write(tmp_path, PAIR)
    with infer.load(path, warm_up=[{"batch": 8, "length": 128}, {"batch": 2, "length": 3}]):
        assert shapes == [((8, 128), (8, 128)), ((2, 3), (2, 3))]


def test_each_version_of_a_live_session_is_warmed_up(artifact: Path, shapes: list[Any]) -> None:
    """Before it takes over."""
    with infer.LiveSession(artifact, warm_up=[{"batch": 5}]) as live:
        live.swap(artifact)
        assert shapes.count(((5, 10),)) == 2


@pytest.mark.parametrize(
    ("warm_up", "said"),
    [
        ([{"bacht": 8}], r"cannot warm up at \{'bacht': 8\}: there is no dim 'bacht'.*there is batch"),
        ([{"batch": 1}, {"batch": 0}], "'batch' cannot be 0"),
        ({"batch": 8}, r"warm_up must be True, False or a list of sizes such as \[\{'batch': 8\}\]"),
        ([{"batch": "8"}], "warm_up must be True, False or a list of sizes"),
        ("yes", "warm_up must be True, False or a list of sizes"),
        (1, "warm_up must be True, False or a list of sizes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(artifact: Path, warm_up: Any, said: str) -> None:
    """The error names the dim, or what was expected."""
    with pytest.raises(infer.InputError, match=said):
        infer.load(artifact, warm_up=warm_up)


def test_a_size_at_which_the_graph_fails_is_named(tmp_path: Path) -> None:
    """Such as a length beyond the positions that a model has, which only the graph knows."""
    graph = (
        "g (float[batch, length] x) => (float[batch, length] y) <float[1, 4] p = {1, 2, 3, 4}>"
        " { y = Add(x, p) }"
    )
    with pytest.raises(infer.InputError, match=r"cannot warm up at \{'length': 5\}: ONNX Runtime failed"):
        infer.load(write(tmp_path, graph), warm_up=[{"length": 5}])
