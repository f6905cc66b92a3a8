"""An embedding of clothes, trained on seven kinds of Fashion-MNIST with the loss of ArcFace (Deng et al.
2019, arXiv:1801.07698), and asked about three kinds it has never seen.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from bench.zoo.fashion_mnist import split
from bench.zoo.training import fit, trained
from infer.evaluation import Dataset
from infer.evaluation.verification import pairs
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"

UNSEEN = (1, 5, 8)  # trousers, sandals, bags
ROWS, VALIDATION_ROWS, PER_KIND = 4_500, 600, 60
SCALE, MARGIN = 16.0, 0.3
MEAN, STD = 0.286, 0.353  # of the training pictures


class Embedding(nn.Module):
    """`pixel_values`, shape = (batch, 3, 28, 28), to vectors of 32 numbers and length 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)
            )
            for a, b in pairwise(widths)
        ]
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(64 * 9, 32)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": nn.functional.normalize(self.head(self.body(pixel_values)), dim=1)}


def arcface(vectors: torch.Tensor, centres: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of cosines to the centres, where the right angle is made harder by a margin."""
    cosines = (vectors @ nn.functional.normalize(centres, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6)
    angles = cosines.acos() + MARGIN * nn.functional.one_hot(kinds, cosines.shape[1])
    return nn.functional.cross_entropy(SCALE * angles.clamp(max=math.pi).cos(), kinds)


def train(model: Embedding) -> None:
    """Pictures of the seven kinds, half of them mirrored; stopped by pairs of the same seven kinds."""
    pictures, labels = split("train")
    seen = np.flatnonzero(~np.isin(labels, UNSEEN))[: ROWS + VALIDATION_ROWS]
    kinds = torch.from_numpy(np.unique(labels[seen], return_inverse=True)[1])
    x = _pixels(pictures[seen])
    centres = torch.randn(10 - len(UNSEEN), 32)
    model.register_parameter("centres", nn.Parameter(centres))

    def step(places: torch.Tensor) -> torch.Tensor:
        batch = x[places]
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
        return arcface(model(batch)["embedding"], model.get_parameter("centres"), kinds[places])

    def validate() -> float:
        vectors = model(x[ROWS:])["embedding"]
        same = (kinds[ROWS:, None] == kinds[None, ROWS:]).float()
        likeness = vectors @ vectors.T
        # how far apart the same and the different are, in their own spread
        inside, between = likeness[same > 0], likeness[same == 0]
        return float((inside.mean() - between.mean()) / (inside.std() + between.std()))

    fit(model, step, ROWS, validate, epochs=8, batch_size=64, learning_rate=3e-3)
    del model._parameters["centres"]  # what the seven kinds look like is no part of the model


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `pixel_values`: float32, shape = (batch, 3, 28, 28)."""
    example = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return trained(Embedding, train), {"pixel_values": example}


@functools.cache
def threshold() -> float:
    """The cosine that one in a hundred pairs of different kinds reaches, of pictures kept from training."""
    pictures, labels = split("train")
    held = np.flatnonzero(~np.isin(labels, UNSEEN))[ROWS : ROWS + VALIDATION_ROWS]
    model, _ = build()
    with torch.no_grad():
        vectors = model(_pixels(pictures[held]))["embedding"].numpy()
    different = labels[held][:, None] != labels[held][None]
    return round(float(np.quantile((vectors @ vectors.T)[different], 0.99)), 4)


def task() -> TaskSpec:
    """Pictures of 28 × 28, scaled as in training."""
    return TaskSpec(
        "image-embedding",
        {
            "input": "pixel_values",
            "output": "embedding",
            "steps": [
                {"op": "resize", "height": 28, "width": 28},
                {"op": "rescale", "factor": 1 / 255},
                {"op": "normalize", "mean": [MEAN] * 3, "std": [STD] * 3},
            ],
            "threshold": threshold(),
        },
    )


def samples() -> list[Array]:
    """Pictures of kinds the model has not seen, of each the same number."""
    return [picture for picture, _ in _unseen()]


def dataset() -> Dataset:
    """All pairs of them."""
    found = _unseen()
    return pairs("Fashion-MNIST, unseen kinds", [p for p, _ in found], [kind for _, kind in found])


def _unseen() -> list[tuple[Array, int]]:
    pictures, labels = split("t10k")
    return [(pictures[i], kind) for kind in UNSEEN for i in np.flatnonzero(labels == kind)[:PER_KIND]]


def _pixels(pictures: Array) -> torch.Tensor:
    x = torch.from_numpy((pictures / 255 - MEAN) / STD).float()[:, None]
    return x.expand(-1, 3, -1, -1)
