"""Feeds to warm up and measure with: real ones where the artifact has any, at sizes that are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from infer.artifact import Artifact
from infer.errors import FeedError
from infer.guard import Guard
from infer.manifest import GoldenPoint, Manifest
from infer.signature import Array, Signature, TensorSpec

Feeds = dict[str, Array]

BATCH = "batch"
"""What `--sweep` and `--size` call the first dim of the first input, whatever its name is."""

EXAMPLE = "example"
"""What the golden point is called that the model was converted with."""

# sizes of a plain graph's open dims, when nothing is known of them
_LENGTH, _EDGE = 128, 224


def example_feeds(artifact: Artifact) -> Feeds:
    """What the model was converted with, or else the artifact's first golden feeds; without any, made-up
    ones: normal floats, small ints, masks of ones."""
    from infer.npz import load_npz  # zipfile is slow to import

    point = example_point(artifact.manifest)
    if point is None:
        return made_up_feeds(artifact.manifest.signature)
    return load_npz(artifact.file(point.feeds))


def example_point(manifest: Manifest) -> GoldenPoint | None:
    """The golden point of what the model was converted with, or else the first; None without any."""
    points = manifest.golden
    return next((point for point in points if point.name == EXAMPLE), points[0] if points else None)


def made_up_feeds(signature: Signature) -> Feeds:
    """Feeds that fit `signature`, at sizes of which nothing is known but what it fixes."""
    rng = np.random.default_rng(0)
    return {spec.name: _made_up(spec, rng) for spec in signature.inputs}


def made_up_values(signature: Signature) -> int:
    """How many values `made_up_feeds` would have."""
    return sum(math.prod(_made_up_shape(spec)) for spec in signature.inputs)


def batch_dim(signature: Signature) -> str | None:
    """The dim along which samples lie: the first input's first, if it may vary."""
    first = signature.inputs[0].dims if signature.inputs else ()
    return first[0] if first and isinstance(first[0], str) else None


def sizes_of(signature: Signature, feeds: Mapping[str, Array]) -> dict[str, int]:
    """The size that each open dim has in `feeds`."""
    found: dict[str, int] = {}
    for spec in signature.inputs:
        for dim, size in zip(spec.dims, feeds[spec.name].shape, strict=False):
            if isinstance(dim, str):
                found.setdefault(dim, int(size))
    return found


def resized(signature: Signature, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> Feeds:
    """`feeds` with each dim that `sizes` names cut, or repeated, to its size.

    The batch may be called "batch". Raises `FeedError` for feeds that do not fit the signature, and for a
    dim that it lacks or limits.
    """
    wanted = dict(sizes)
    batch = batch_dim(signature)
    if BATCH in wanted and BATCH not in signature.dims:
        if batch is None:
            raise FeedError(
                f"the batch of {signature.inputs[0]} is fixed; measure it at its own size, or convert the"
                f" model with a batch that may vary"
            )
        wanted[batch] = wanted.pop(BATCH)
    if unknown := [dim for dim in wanted if dim not in signature.dims]:
        raise FeedError(
            f"there is no dim '{unknown[0]}' that may vary; there is {', '.join(signature.dims) or 'none'}"
        )
    for name, size in wanted.items():
        if size < 1 or not signature.allows(name, size):
            raise FeedError(
                f"'{name}' cannot be {size}; it may be {signature.limits.get(name, '1 or more')}"
            )
    found: Feeds = dict(Guard(signature).admit(feeds))
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, str) and dim in wanted:
                array = found[spec.name]
                if not array.shape[axis]:
                    raise FeedError(f"'{dim}' is 0 in the feeds, so there is nothing to repeat")
                places = np.arange(wanted[dim]) % array.shape[axis]
                found[spec.name] = np.ascontiguousarray(array.take(places, axis))
    return found


def _made_up_shape(spec: TensorSpec) -> list[int]:
    return [
        dim if isinstance(dim, int) else 1 if axis == 0 else _EDGE if len(spec.dims) >= 4 else _LENGTH
        for axis, dim in enumerate(spec.dims)
    ]


def _made_up(spec: TensorSpec, rng: np.random.Generator) -> Array:
    shape = _made_up_shape(spec)
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b" or "mask" in spec.name:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 10, shape).astype(dtype)
    return np.full(shape, "text", dtype)
