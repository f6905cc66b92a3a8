"""A U-Net that finds cell nuclei in fluorescence microscopy, trained on the 16-bit image that
stardist==0.9.2 carries (512 × 512, with a mask of every nucleus; Caicedo et al., Nature Methods 16, 2019).

The image is cut into 16 tiles: ten to train on, three to stop by, three held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import nn

from bench.zoo.debian import NoDataError
from bench.zoo.training import fit, trained
from bench.zoo.unet import UNet, dice, overlap_loss
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"

TILE, CROP, CROPS_PER_EPOCH, EPOCHS = 128, 64, 96, 14
# spread over the image, whose corners differ
VALIDATION, TEST = (2, 7, 13), (5, 8, 15)


@dataclass(frozen=True)
class Tiles:
    """Pictures, uint16, shape = (16, 128, 128), and whether a pixel is in a nucleus."""

    pictures: Array
    inside: Array

    @property
    def train(self) -> list[int]:
        return [i for i in range(len(self.pictures)) if i not in (*VALIDATION, *TEST)]


def tiles() -> Tiles:
    """The image, cut. Raises `NoDataError`."""
    return Tiles(*(_cut(read_image(name)) for name in ("img2d", "mask2d")))


def read_image(name: str) -> Array:
    """One of the images of the package. Raises `NoDataError`."""
    found = find_spec("stardist")
    if found is None or found.origin is None:
        raise NoDataError("the nuclei are in a package: pip install --no-deps stardist==0.9.2")
    return np.asarray(tifffile.imread(Path(found.origin).parent / "data/images" / f"{name}.tif"))


def _cut(image: Array) -> Array:
    rows = image.shape[0] // TILE
    return image.reshape(rows, TILE, rows, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)


def scaling() -> tuple[float, float]:
    """Mean and standard deviation of the training tiles."""
    found = tiles()
    pixels = found.pictures[found.train].astype(np.float64)
    return float(pixels.mean()), float(pixels.std())


def train(model: UNet) -> None:
    """Random crops, turned and mirrored, and dimmed or brightened a little."""
    found = tiles()
    mean, std = scaling()
    pictures = torch.from_numpy((found.pictures - mean) / std).float()[:, None]
    inside = torch.from_numpy(found.inside > 0).float()[:, None]

    def step(places: torch.Tensor) -> torch.Tensor:
        crops = []
        for place in places.tolist():
            tile = found.train[place % len(found.train)]
            top, left = torch.randint(TILE - CROP + 1, (2,)).tolist()
            pair = torch.cat([pictures[tile], inside[tile]])[:, top : top + CROP, left : left + CROP]
            pair = pair.rot90(int(torch.randint(4, ())), (1, 2))
            crops.append(pair.flip(2) if torch.rand(()) < 0.5 else pair)
        x, y = torch.stack(crops).split(1, dim=1)
        return overlap_loss(model(x * torch.empty(len(x), 1, 1, 1).uniform_(0.8, 1.25))["logits"], y)

    def validate() -> float:
        held = list(VALIDATION)
        return dice(model(pictures[held])["logits"], inside[held])

    fit(model, step, CROPS_PER_EPOCH, validate, epochs=EPOCHS, batch_size=8, learning_rate=3e-3, patience=8)


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `pixel_values`: float32, shape = (batch, 1, height, width)."""
    example = torch.randn(2, 1, CROP, CROP, generator=torch.Generator().manual_seed(0))
    return trained(UNet, train), {"pixel_values": example}


def task() -> TaskSpec:
    """Scans of one channel, scaled as in training; large ones in windows."""
    mean, std = scaling()
    return TaskSpec(
        "image-segmentation",
        {
            "input": "pixel_values",
            "output": "logits",
            "mode": "sigmoid",
            "labels": ["nucleus"],
            "scan": {"steps": [{"op": "z_score", "mean": mean, "std": std}]},
            "windows": {"size": [TILE, TILE], "overlap": 0.25},
        },
    )


def samples() -> list[Array]:
    """A tile the model has not seen."""
    return [tiles().pictures[TEST[0]]]


def dataset() -> Dataset:
    """The held-out tiles, with the numbers of the nuclei as masks."""
    found = tiles()
    return Dataset(
        "nuclei, held-out tiles", list(found.pictures[list(TEST)]), list(found.inside[list(TEST)])
    )
