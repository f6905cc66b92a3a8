"""A detector trained here keeps its mean average precision as an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import infer
from bench.zoo import convert, fashion_detector, source
from bench.zoo.debian import NoDataError
from converters.original import original_task
from infer.evaluation import evaluate, evaluate_task
from tests.conftest import TrainFor


def shared(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(two[2:] - two[:2]))
    return common / (areas - common)


@pytest.mark.slow
@pytest.mark.long
def test_the_artifact_finds_what_its_original_finds(tmp_path: Path, train_for: TrainFor) -> None:
    """Trained for five of its eight epochs: mean average precision on scenes of unseen items, with
    suppression in the task, is PyTorch's."""
    train_for(fashion_detector, epochs=5)
    try:
        artifact = convert("fashion-detector", tmp_path / "detector.infer")
    except NoDataError as error:
        pytest.skip(str(error))
    dataset = fashion_detector.dataset()
    with (
        infer.load(artifact.path) as session,
        original_task(source("fashion-detector"), artifact) as original,
    ):
        found = evaluate(session, dataset)
        against = evaluate_task(original, dataset)
        (scene,) = fashion_detector.samples()[:1]
        large = np.repeat(np.repeat(scene, 2, axis=0), 2, axis=1)
        for one, two in zip(session(scene), session(large), strict=True):
            # the scene at twice its size is shrunk again by a filter, which moves boxes a little; boxes in
            # the coordinates of the shrunk one would share a quarter of their area
            assert shared(2 * np.array(one.box), np.array(two.box)) > 0.75
    assert found.metrics["map_50"] > 0.75
    assert found.metrics["map_50_95"] > 0.55
    assert found.metrics == pytest.approx(against.metrics, abs=1e-3)
    assert {name.label for name in found.classes} == set(fashion_detector.LABELS)
