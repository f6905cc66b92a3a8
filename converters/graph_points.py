"""Test points of a graph that came without its model: its own answers, at the example and where it says
that its sizes are open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converters.points import Point, to_numpy
from converters.sources import SourceRequest
from infer.errors import ConversionError, InferError
from infer.feeds import EXAMPLE
from infer.signature import Array, Range, Signature, TensorSpec
from infer.tasks import Run

Progress = Callable[[str], None]

_EXAMPLE = {"first": 2, "other": 8}
_MORE = {"first": (1, 3), "other": (1, 5, 16)}
"""Sizes of open dims that are tried: of those on a first axis, and of the others."""


def graph_points(
    signature: Signature, request: SourceRequest, run: Run, progress: Progress
) -> tuple[list[Point], dict[str, Range], list[str]]:
    """Points where `run` answers, limits of the dims that cannot have all sizes, and notes.

    Open dims are varied one by one, and all of a kind together: some must be equal though they have
    different names. A dim at which the graph fails both ways is limited to what it can.
    Raises `ConversionError` if it fails at the example.
    """
    kinds = _kinds(signature)
    example = _example(signature, request, kinds)
    try:
        points = [Point(EXAMPLE, frozenset(), example, run(example))]
    except InferError as error:
        raise ConversionError(
            f"{error}. If the example feeds are at fault, give some that fit: --input NAME=SHAPE:DTYPE"
        ) from error
    sizes = {
        dim: size
        for spec in signature.inputs
        for dim, size in zip(spec.dims, example[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }

    def answered(dims: list[str], size: int) -> bool:
        feeds = _resized(signature, example, {**sizes, **dict.fromkeys(dims, size)})
        try:
            points.append(Point(f"{', '.join(dims)}={size}", frozenset(dims), feeds, run(feeds)))
        except InferError:
            return False
        return True

    serves: dict[str, set[int]] = {dim: {size} for dim, size in sizes.items()}
    for kind, others in _MORE.items():
        dims = [dim for dim in sizes if kinds[dim] == kind]
        if dims:
            progress(f"trying other sizes of {', '.join(dims)}")
        for size in others:
            for alone in dims:
                if size != sizes[alone] and answered([alone], size):
                    serves[alone].add(size)
            if len(dims) > 1 and answered(dims, size):
                for dim in dims:
                    serves[dim].add(size)
    limits, notes = {}, []
    for dim, served in serves.items():
        if len(served) == 1:
            limits[dim] = Range(sizes[dim], sizes[dim])
            notes.append(f"the graph leaves dim '{dim}' open, but answers only at {sizes[dim]}")
        elif 1 not in served:
            limits[dim] = Range(min(served))
    return points, limits, notes


def _kinds(signature: Signature) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, str):
                kinds.setdefault(dim, "first" if axis == 0 else "other")
    return kinds


def _example(signature: Signature, request: SourceRequest, kinds: Mapping[str, str]) -> dict[str, Array]:
    """The caller's arrays, and seeded values for the inputs that have none."""
    given = request.example_inputs or {}
    if not isinstance(given, Mapping):
        given = dict(zip((spec.name for spec in signature.inputs), given, strict=False))
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in signature.inputs:
        shape = [_EXAMPLE[kinds[dim]] if isinstance(dim, str) else dim for dim in spec.dims]
        array = to_numpy(given[spec.name], spec.name) if spec.name in given else _values(spec, shape, rng)
        feeds[spec.name] = array
    return feeds


def _resized(
    signature: Signature, example: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """The example repeated or cut along its open dims."""
    feeds = {}
    for spec in signature.inputs:
        array = example[spec.name]
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, str) and array.shape[axis]:
                array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
        feeds[spec.name] = array
    return feeds


def _values(spec: TensorSpec, shape: list[int], rng: np.random.Generator) -> Array:
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if spec.numpy_dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(spec.numpy_dtype)
    # 0 and 1 are ids of every vocabulary, and a mask
    values: Any = rng.integers(0, 2, shape)
    return np.asarray(values).astype(spec.numpy_dtype)
