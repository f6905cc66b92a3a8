"""A ResNet-18 for small pictures, a quarter as wide as the original, trained on Fashion-MNIST."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bench.zoo.fashion_mnist import LABELS, split
from bench.zoo.residual import ResNet
from bench.zoo.training import fit, trained
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"

ROWS, VALIDATION_ROWS, TEST_ROWS = 30_000, 1_000, 2_000
MEAN, STD = 0.286, 0.353  # of the training pictures


def train(model: nn.Module) -> None:
    """Pictures mirrored and moved by a pixel or two; stopped by a thousand others."""
    pictures, labels = split("train")
    x, y = _pixels(pictures[: ROWS + VALIDATION_ROWS]), torch.from_numpy(labels.astype(np.int64))

    def step(places: torch.Tensor) -> torch.Tensor:
        batch = nn.functional.pad(x[places], (2, 2, 2, 2), value=-MEAN / STD)
        down, right = torch.randint(5, (2,)).tolist()
        batch = batch[:, :, down : down + 28, right : right + 28]
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
        return nn.functional.cross_entropy(model(batch)["logits"], y[places], label_smoothing=0.05)

    def validate() -> float:
        rows = slice(ROWS, ROWS + VALIDATION_ROWS)
        return float((model(x[rows])["logits"].argmax(1) == y[rows]).float().mean())

    fit(model, step, ROWS, validate, epochs=3, batch_size=128, learning_rate=4e-3)


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `pixel_values`: float32, shape = (batch, 3, 28, 28)."""
    example = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model = trained(lambda: ResNet((2, 2, 2, 2), False, 16, 10, small=True), train)
    return model, {"pixel_values": example}


def task() -> TaskSpec:
    """Pictures of 28 × 28, scaled as in training."""
    return TaskSpec(
        "image-classification",
        {
            "input": "pixel_values",
            "output": "logits",
            "steps": [
                {"op": "resize", "height": 28, "width": 28},
                {"op": "rescale", "factor": 1 / 255},
                {"op": "normalize", "mean": [MEAN] * 3, "std": [STD] * 3},
            ],
            "labels": list(LABELS),
        },
    )


def samples() -> list[Array]:
    """Pictures of the test set."""
    return list(split("t10k")[0][:8])


def dataset() -> Dataset:
    """The first 2,000 pictures of the test set."""
    pictures, labels = split("t10k")
    return Dataset("Fashion-MNIST, test", list(pictures[:TEST_ROWS]), labels[:TEST_ROWS].tolist())


def _pixels(pictures: Array) -> torch.Tensor:
    x = torch.from_numpy((pictures / 255 - MEAN) / STD).float()[:, None]
    return x.expand(-1, 3, -1, -1)
