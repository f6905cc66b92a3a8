"""A 10-5-2 feed-forward net, trained on the breast cancer data of scikit-learn.

569 tumours, the ten mean measurements of each, malignant or benign (Wolberg, Street and
Mangasarian 1993). Trained here in about a second, seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bench.zoo.training import fit, trained
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"


class FeedForward(nn.Module):
    """Ten measurements in, two logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 5)
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.fc2(torch.relu(self.fc1(x)))}


@dataclass(frozen=True)
class Data:
    """Rows as measured, their classes, and the scaling that training rows have."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    train_x: Array
    train_y: Array
    validation_x: Array
    validation_y: Array
    test_x: Array
    test_y: Array

    @property
    def mean(self) -> Array:
        return np.asarray(self.train_x.mean(axis=0))

    @property
    def scale(self) -> Array:
        return np.asarray(self.train_x.std(axis=0))


def data() -> Data:
    """The data, split by class: 60 % for training, 20 % for validation, 20 % for testing."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    loaded = load_breast_cancer()
    rest_x, test_x, rest_y, test_y = train_test_split(
        loaded.data[:, :10], loaded.target, test_size=0.2, random_state=0, stratify=loaded.target
    )
    train_x, validation_x, train_y, validation_y = train_test_split(
        rest_x, rest_y, test_size=0.25, random_state=0, stratify=rest_y
    )
    columns = tuple(str(name) for name in loaded.feature_names[:10])
    labels = tuple(map(str, loaded.target_names))
    return Data(columns, labels, train_x, train_y, validation_x, validation_y, test_x, test_y)


def train(model: FeedForward) -> None:
    """Cross-entropy with weight decay, until that of validation gets no better."""
    found = data()
    x, held_out = (
        torch.from_numpy((rows - found.mean) / found.scale).float()
        for rows in (found.train_x, found.validation_x)
    )
    y, truth = torch.from_numpy(found.train_y), torch.from_numpy(found.validation_y)

    def step(rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[rows])["logits"], y[rows])

    def validate() -> float:
        return -float(nn.functional.cross_entropy(model(held_out)["logits"], truth))

    fit(
        model,
        step,
        len(x),
        validate,
        epochs=40,
        batch_size=32,
        learning_rate=1e-2,
        weight_decay=0.05,
        patience=10,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `x`: float32, shape = (batch, 10), scaled."""
    found = data()
    example = torch.from_numpy((found.test_x[:4] - found.mean) / found.scale).float()
    return trained(FeedForward, train), {"x": example}


def task() -> TaskSpec:
    """Columns with the scaling of training, and the names of the classes."""
    found = data()
    return TaskSpec(
        "tabular-classification",
        {
            "input": "x",
            "output": "logits",
            "columns": [
                {"name": name, "mean": float(mean), "scale": float(scale)}
                for name, mean, scale in zip(found.columns, found.mean, found.scale, strict=True)
            ],
            "labels": list(found.labels),
        },
    )


def samples() -> list[dict[str, float]]:
    """Patients the model has not seen."""
    found = data()
    return [dict(zip(found.columns, row.tolist(), strict=True)) for row in found.test_x]


def dataset() -> Dataset:
    """The held-out fifth."""
    return Dataset("breast cancer, held out", samples(), data().test_y.tolist())
