"""The zoo's fine-tuned classifier: metrics of the artifact are those of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

import infer
from bench.zoo import convert, debian, sentiment, source
from converters.original import original_task
from infer.evaluation import Dataset, evaluate_task


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)  # fine-tunes on one core, and others may be at work
def test_sentiment_is_as_good_as_its_original(tmp_path: Path) -> None:
    """Fine-tuned MiniLM tells held-out sentences apart, and the artifact does so exactly as well,
    which 250 of the thousand show."""
    try:
        dataset = sentiment.dataset()
    except debian.NoDataError as error:
        pytest.skip(str(error))
    artifact = convert("sentiment", tmp_path / "sentiment.infer")
    assert artifact.manifest.task is not None
    assert artifact.manifest.task.name == "text-classification"
    some = Dataset(dataset.name, dataset.inputs[:250], dataset.expected[:250])
    with infer.load(artifact.path) as session, original_task(source("sentiment"), artifact) as original:
        ours = evaluate_task(session.task, dataset).metrics
        theirs = evaluate_task(original, some).metrics
        for name, value in evaluate_task(session.task, some).metrics.items():
            assert abs(value - theirs[name]) <= 1e-4, name
    assert ours["accuracy"] > 0.7
    assert ours["f1"] > 0.7
    assert ours["roc_auc"] > 0.8


def test_the_sentences_are_divided_by_review() -> None:
    """No text of a test review is trained on, and both classes are in every part."""
    try:
        parts = sentiment.data()
    except debian.NoDataError as error:
        pytest.skip(str(error))
    sizes = (sentiment.TRAIN, sentiment.VALIDATE, sentiment.TEST)
    assert all(len(part.texts) >= size for part, size in zip(parts, sizes, strict=True))
    for part in parts:
        assert 0.4 < sum(part.positive) / len(part.positive) < 0.7
    assert len(set(parts[0].texts) & set(parts[2].texts)) <= 5  # a few reviews are written twice
