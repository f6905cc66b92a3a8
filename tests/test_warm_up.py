"""Warming up: what runs before a session is handed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.artifact import record_files
from infer.backends.ort import OrtExecutable
from infer.feeds import EXAMPLE
from infer.machine import this_machine
from infer.manifest import GoldenPoint
from infer.npz import save_npz
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact
from infer.warm_up import warm_up
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


@pytest.mark.parametrize(
    ("golden", "batch", "expected"),
    [
        ({}, "batch", []),
        ({"smallest": 1, EXAMPLE: 9}, "batch", [(1, 9)]),
        ({"smallest": 2, "larger": 4}, "batch", [(1, 2)]),
        ({"smallest": 1, EXAMPLE: 9}, "2", [(2, 9)]),
    ],
    ids=["no golden points", "an example", "none", "rows that do not vary"],
)
def test_by_default_a_row_of_the_example_runs(
    golden: dict[str, int], batch: str, expected: list[Any], tmp_path: Path
) -> None:
    """Which is what comes; the first golden point is the smallest."""
    (tmp_path / "golden").mkdir()
    points = []
    for name, length in golden.items():
        x = np.ones((2, length), np.int64)
        save_npz(tmp_path / f"golden/{name}.npz", {"ids": x, "mask": x})
        points.append(GoldenPoint(name, f"golden/{name}.npz", f"golden/{name}.npz"))
    graph = write(tmp_path, PAIR.replace("batch", batch))
    plain = open_artifact(graph)
    manifest = replace(plain.manifest, golden=tuple(points), files=record_files(tmp_path))
    artifact = replace(plain, path=tmp_path, manifest=manifest)
    seen: list[Any] = []
    plan = make_plan(plain.manifest, this_machine(), PlanOptions())
    with infer.load(graph) as session:

        def run(feeds: Any) -> Any:
            seen.append(feeds["ids"].shape)
            return session.run(feeds)

        warm_up(artifact, plan, run, True)
    assert seen == expected


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
