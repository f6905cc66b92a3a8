"""A small net that predicts how far diabetes goes on in a year, trained on the data of scikit-learn.

442 patients, ten measurements of each, and a measure of the disease one year later (Efron, Hastie,
Johnstone and Tibshirani 2004). Trained here in seconds, seeded, as the mean of several nets, which is
the cure for so few rows.
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

NETS, HIDDEN = 8, 16


class Net(nn.Module):
    """The mean of nets with one hidden layer. `x`: float32, shape = (batch, 10), scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(10, HIDDEN), nn.Tanh(), nn.Dropout(0.1), nn.Linear(HIDDEN, 1))
            for _ in range(NETS)
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"progression": torch.stack([net(x)[:, 0] for net in self.nets]).mean(dim=0)}


@dataclass(frozen=True)
class Data:
    """Rows as measured, the target as measured, and where the parts of the split begin."""

    columns: tuple[str, ...]
    x: Array
    y: Array
    train: Array
    validation: Array
    test: Array

    @property
    def mean(self) -> Array:
        return np.asarray(self.x[self.train].mean(axis=0))

    @property
    def scale(self) -> Array:
        return np.asarray(self.x[self.train].std(axis=0))

    @property
    def target_mean(self) -> float:
        return float(self.y[self.train].mean())

    @property
    def target_scale(self) -> float:
        return float(self.y[self.train].std())


def data() -> Data:
    """The data, split once and for all: 60 % for training, 20 % for validation, 20 % for testing."""
    from sklearn.datasets import load_diabetes

    loaded = load_diabetes(scaled=False)
    order = np.random.default_rng(0).permutation(len(loaded.data))
    train, validation, test = np.split(order, [265, 353])
    names = tuple(map(str, loaded.feature_names))
    return Data(names, loaded.data, loaded.target, train, validation, test)


def train(model: Net) -> None:
    """The squared error of each net, with weight decay, until validation gets no better."""
    found = data()
    x = torch.from_numpy((found.x - found.mean) / found.scale).float()
    y = torch.from_numpy((found.y - found.target_mean) / found.target_scale).float()
    train_x, train_y = x[found.train], y[found.train]

    def step(rows: torch.Tensor) -> torch.Tensor:
        each = torch.stack([net(train_x[rows])[:, 0] for net in model.nets])
        return ((each - train_y[rows]) ** 2).mean()

    def validate() -> float:
        return -float(((model(x[found.validation])["progression"] - y[found.validation]) ** 2).mean())

    fit(
        model,
        step,
        len(train_x),
        validate,
        epochs=60,
        batch_size=32,
        learning_rate=5e-3,
        weight_decay=0.05,
        patience=15,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and four scaled rows."""
    found = data()
    example = torch.from_numpy((found.x[found.test[:4]] - found.mean) / found.scale).float()
    return trained(Net, train), {"x": example}


def task() -> TaskSpec:
    """Columns and target with the scaling of training; sex is 1 or 2 in this data, so it is a number."""
    found = data()
    return TaskSpec(
        "tabular-regression",
        {
            "input": "x",
            "output": "progression",
            "columns": [
                {"name": name, "mean": float(mean), "scale": float(scale)}
                for name, mean, scale in zip(found.columns, found.mean, found.scale, strict=True)
            ],
            "targets": [{"name": "progression", "mean": found.target_mean, "scale": found.target_scale}],
        },
    )


def samples() -> list[dict[str, float]]:
    """Patients the model has not seen."""
    found = data()
    return [dict(zip(found.columns, found.x[row].tolist(), strict=True)) for row in found.test]


def dataset() -> Dataset:
    """The held-out fifth."""
    found = data()
    return Dataset("diabetes, held out", samples(), found.y[found.test].tolist())
