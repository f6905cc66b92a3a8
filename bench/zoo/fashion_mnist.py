"""Fashion-MNIST: 70,000 grey pictures of 28×28, ten kinds of clothing (Zalando, MIT).

The data is in the Debian package dataset-fashion-mnist.
"""

from __future__ import annotations

import functools
import gzip

import numpy as np

from bench.zoo.debian import package
from infer.signature import Array

LABELS = (
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@functools.cache
def split(name: str) -> tuple[Array, Array]:
    """Pictures, uint8, shape = (n, 28, 28), and labels, uint8: "train" has 60,000, "t10k" 10,000.

    Raises `NoDataError`.
    """
    folder = package("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    pictures = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    # idx: 16 and 8 bytes of header
    return np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(
        labels, np.uint8, offset=8
    )
