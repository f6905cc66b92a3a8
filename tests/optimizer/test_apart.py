"""Plans that are timed in processes of their own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.artifact import Artifact
from infer.errors import BackendError
from infer.machine import this_machine
from infer.measure.statistics import verdict
from infer.optimizer import apart
from infer.optimizer.apart import Planned, ratio_apart
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact
from tests import serving
from tests.serving import slow
from tests.tiny import make_artifact


def quietly(said: str) -> None:
    """No progress."""


@pytest.mark.slow
def test_what_takes_longer_is_slower_and_what_is_the_same_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of products beside itself, and beside one of products of an eighth of the size."""
    artifact = open_artifact(slow(tmp_path))
    monkeypatch.setattr(serving, "SLOW_SIZE", serving.SLOW_SIZE // 2)
    (tmp_path / "small").mkdir()
    less = open_artifact(slow(tmp_path / "small"))
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions(num_threads=1))
    feeds, whole = [{"n": np.array([20])}], Planned("whole", artifact, plan)
    again = ratio_apart(whole, whole, feeds, 2.0, quietly, 2)
    assert 0.5 < again.value < 2
    # two at once on the same thread, each with its own feeds, beside one after the other
    both = ratio_apart(Planned("both", artifact, replace(plan, streams=2)), whole, feeds, 2.0, quietly, 2)
    assert 0.4 < both.value < 2
    part = Planned("part", less, replace(plan, graph=less.manifest.variants[0].graph))
    ratio = ratio_apart(part, whole, feeds, 2.0, quietly, 2)
    assert verdict(ratio) == "faster"
    assert ratio.value < 0.5


def test_one_that_dies_is_told(tmp_path: Path) -> None:
    """As where memory runs out, and between two turns, too: no broken pipe, and nothing waits for it."""
    artifact = Artifact.open(make_artifact(tmp_path / "net.infer"))
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions())
    with ExitStack() as stack:
        query = apart._Process(Planned("net", artifact, plan), [{"x": np.ones((1, 10), np.float32)}], stack)
        query.start()
        assert query.turn(3).shape == (3,)
        query._process.kill()
        query._process.wait()
        with pytest.raises(BackendError, match="net failed in a process of its own"):
            query.turn(1)


def test_what_fails_there_is_told_with_its_reason(tmp_path: Path) -> None:
    """A graph that is gone."""
    artifact = Artifact.open(make_artifact(tmp_path / "net.infer"))
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions())
    here = Planned("here", artifact, plan)
    gone = Planned("gone", artifact, replace(plan, graph="graphs/gone.onnx"))
    with pytest.raises(BackendError, match=r"gone failed in a process of its own: .*gone\.onnx"):
        ratio_apart(here, gone, [{"x": np.ones((1, 10), np.float32)}], 1.0, quietly, 1)
