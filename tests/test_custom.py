"""A caller's own encode and decode functions take the place of a task's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converters
import infer
from infer.errors import InputError
from infer.evaluation import Dataset
from tests.models import TwoLayers
from tests.text_models import bert_folder

LABELS = ("no", "yes")
ROWS = [",".join(str(i * j % 7) for j in range(10)) for i in range(70)]
"""Ten numbers in a string, which no task of ours reads."""


def numbers(rows: Sequence[str]) -> dict[str, np.ndarray]:
    return {"x": np.array([[float(cell) for cell in row.split(",")] for row in rows], np.float32)}


def best(outputs: Mapping[str, np.ndarray], rows: Sequence[str]) -> list[tuple[str, str]]:
    places = outputs["logits"].argmax(axis=1)
    return [(row, LABELS[place]) for row, place in zip(rows, places, strict=True)]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return TwoLayers().eval()


@pytest.fixture(scope="module")
def bare(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "net.infer"
    converters.convert(original, path, example_inputs={"x": torch.randn(2, 10)})
    return path


@pytest.fixture(scope="module")
def tabular(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tabular") / "net.infer"
    task = {
        "name": "tabular-classification",
        "spec": {
            "columns": [{"name": f"c{i}"} for i in range(10)],
            "input": "x",
            "output": "logits",
            "labels": LABELS,
        },
    }
    converters.convert(original, path, example_inputs={"x": torch.randn(2, 10)}, task=task)
    return path


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entities")
    bert_folder(folder / "model", "TokenClassification")
    converters.convert(folder / "model", folder / "model.infer")
    return folder / "model.infer"


def expected(original: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(original(torch.from_numpy(numbers(ROWS)["x"]))["logits"].numpy())


def test_both_functions(bare: Path, original: nn.Module) -> None:
    """Inputs and results are the caller's; 70 inputs come in batches of at most 32, in order."""
    sizes: list[int] = []

    def encode(rows: Sequence[str]) -> dict[str, np.ndarray]:
        sizes.append(len(rows))
        return numbers(rows)

    with infer.load(bare, encode=encode, decode=best) as session:
        wanted = [
            (row, LABELS[place]) for row, place in zip(ROWS, expected(original).argmax(1), strict=True)
        ]
        assert session(ROWS) == wanted
        assert sizes == [32, 32, 6]
        assert session(ROWS[3]) == wanted[3]
        assert session([]) == []


def test_encode_alone_keeps_the_reading_of_labels(tabular: Path, original: nn.Module) -> None:
    """A task that reads its results from the outputs alone goes on doing so, and can be evaluated."""
    scores = torch.softmax(torch.from_numpy(expected(original)), dim=1).numpy()
    with infer.load(tabular, encode=numbers) as session:
        for result, row in zip(session(ROWS), scores, strict=True):
            assert result[0].label == LABELS[row.argmax()]
            assert result[0].score == pytest.approx(row.max(), abs=1e-6)
        targets = [LABELS[place] for place in scores.argmax(axis=1)]
        assert infer.evaluate(session, Dataset("rows", ROWS, targets)).metrics["accuracy"] == 1.0


def test_encode_alone_without_a_task_gives_rows(bare: Path, original: nn.Module) -> None:
    """Without a task a result is the input's row of what the model returns, nested as it nests it."""
    with infer.load(bare, encode=numbers) as session:
        np.testing.assert_allclose(
            [result["logits"] for result in session(ROWS)], expected(original), atol=1e-6
        )


def test_decode_alone_keeps_the_encoding(tabular: Path, bare: Path, original: nn.Module) -> None:
    """The task's own inputs, the caller's results; without a task an input is its feeds."""
    rows = [[float(cell) for cell in row.split(",")] for row in ROWS]
    places = expected(original).argmax(axis=1)
    with infer.load(tabular, decode=best) as session:
        assert [label for _, label in session(rows)] == [LABELS[place] for place in places]
    with infer.load(bare, decode=lambda outputs, inputs: [outputs["logits"].argmax(axis=1)]) as session:
        np.testing.assert_array_equal(session(numbers(ROWS)), places)


def test_decode_sees_each_text_beside_its_own_row(entities: Path) -> None:
    """Texts are sorted by length inside; decode still gets each with its row, results come in order."""
    texts = ["a longer text of many more words than the others have", "short", "of middle length here"]

    def decode(outputs: Mapping[str, np.ndarray], texts: Sequence[str]) -> list[Any]:
        return [(text, float(row.sum())) for text, row in zip(texts, outputs["logits"], strict=True)]

    with infer.load(entities, decode=decode) as session:
        together = session(texts)
        assert [text for text, _ in together] == texts
        for text, (_, total) in zip(texts, together, strict=True):
            assert session(text)[0] == text
            assert np.isfinite(total)


def test_results_go_to_json(bare: Path) -> None:
    """Whatever decode returns of numpy becomes plain JSON data."""

    def decode(outputs: Mapping[str, np.ndarray], rows: Sequence[str]) -> list[Any]:
        return [
            {"row": row, "values": (values, values.argmax())}
            for row, values in zip(rows, outputs["logits"], strict=True)
        ]

    with infer.load(bare, encode=numbers, decode=decode) as session:
        result = session(ROWS[0])
        shown = json.loads(json.dumps(session.task.to_json(result)))
    assert shown["row"] == ROWS[0]
    np.testing.assert_allclose(shown["values"][0], result["values"][0])
    assert shown["values"][1] in (0, 1)


BROKEN_ENCODE: list[tuple[Callable[..., Any], str]] = [
    (lambda rows: None, "'encode' must return a mapping of names to arrays, but returned a NoneType"),
    (lambda rows: {}, "'encode' must return a mapping of names to arrays, but returned an empty one"),
    (lambda rows: {"x": np.zeros((5, 10), np.float32)}, r"for 2 inputs it returned 'x' of shape \[5, 10\]"),
    (lambda rows: {"x": np.float32(0)}, r"for 2 inputs it returned 'x' of shape \[\]"),
]
BROKEN_DECODE: list[tuple[Callable[..., Any], str]] = [
    (lambda outputs, rows: None, "'decode' must return a list .* but returned a NoneType"),
    (lambda outputs, rows: ["one"], "for each of 2 inputs, but returned a list of 1"),
    (lambda outputs, rows: "ab", "for each of 2 inputs, but returned a str of 2"),
]


@pytest.mark.parametrize(("encode", "message"), BROKEN_ENCODE)
def test_broken_encode(bare: Path, encode: Callable[..., Any], message: str) -> None:
    """What encode returned is said, and what it must return."""
    with infer.load(bare, encode=encode) as session, pytest.raises(InputError, match=message):
        session(ROWS[:2])


@pytest.mark.parametrize(("decode", "message"), BROKEN_DECODE)
def test_broken_decode(bare: Path, decode: Callable[..., Any], message: str) -> None:
    """What decode returned is said, and what it must return."""
    with (
        infer.load(bare, encode=numbers, decode=decode) as session,
        pytest.raises(InputError, match=message),
    ):
        session(ROWS[:2])


def test_a_task_that_needs_its_own_encoding_says_so_at_load(entities: Path) -> None:
    """Entities lie where the tokenizer found tokens: encode alone cannot say."""
    with pytest.raises(InputError, match="'token-classification' depend on how it encoded its inputs"):
        infer.load(entities, encode=lambda texts: {})


def test_wrong_names_are_refused_by_the_guard(bare: Path) -> None:
    """Feeds of encode go through the same guard as any."""
    with (
        infer.load(bare, encode=lambda rows: {"y": numbers(rows)["x"]}) as session,
        pytest.raises(infer.FeedError, match="'y'"),
    ):
        session(ROWS[:2])


def test_results_of_decode_cannot_be_evaluated(tabular: Path) -> None:
    """No metric is known for results that only the caller understands."""
    with infer.load(tabular, decode=best) as session, pytest.raises(InputError, match="custom"):
        infer.evaluate(session, Dataset("rows", [[0.0] * 10], ["no"]))
