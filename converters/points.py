"""Test points: inputs of several sizes, and the original's answers to them.

An export that is right at the example's size may be wrong at every other: padding computed from
the example, positions baked in, a batch size frozen. So the original is asked at other batch
sizes, lengths and resolutions too, and what it cannot do itself is never claimed of the artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from converters.flat import FlatModule
from converters.pristine import pristine
from infer.errors import ConversionError
from infer.signature import Array, Dim, TensorSpec

BATCH = "batch"
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Point:
    """Feeds, the original's outputs for them, and the sizes by which they differ from the example."""

    name: str
    varied: frozenset[str]
    feeds: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Points:
    """All points of a source; the first is the example it came with.

    `example` is what exporters trace: the same, but with at least two rows. `axes` are those
    that the original was seen to vary.
    """

    example: list[torch.Tensor]
    axes: dict[str, dict[int, str]]
    points: tuple[Point, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def make_points(flat: FlatModule, explicit: Axes, usual: Axes) -> Points:
    """Ask the original at the example and around it.

    Dims in `explicit` were demanded: if the original does not answer at other sizes, that is
    a `ConversionError`. Those in `usual` are dropped with a note instead.
    """
    _check_axes(flat, explicit)
    axes = {
        name: dict(sorted({**usual.get(name, {}), **explicit.get(name, {})}.items()))
        for name in flat.input_names
    }
    rank = {name: t.dim() for name, t in zip(flat.input_names, flat.example, strict=True)}
    axes = {name: {a: d for a, d in by.items() if a < rank[name]} for name, by in axes.items()}
    demanded = {dim for by in explicit.values() for dim in by.values()}
    notes = []

    example_sizes = _sizes(flat, axes)
    first = _ask(flat, flat.example, "example", frozenset())
    if isinstance(first, Exception):
        raise ConversionError(
            f"the model fails on its own example inputs: {type(first).__name__}: {first};"
            f" check their shapes and dtypes: {_shown(flat)}"
        ) from first
    again = _ask(flat, flat.example, "example", frozenset())
    if isinstance(again, Exception) or not _same(first.outputs, again.outputs):
        raise ConversionError(
            "the model answers differently each time it is asked the same, so nothing can be proved"
            " about an export; remove the randomness (dropout outside of training mode, sampling)"
        )

    points = [first]
    sizes_of: dict[str, list[int]] = {}
    for dim, size in example_sizes.items():
        found = _answers_at(flat, axes, dim, size, demanded=dim in demanded)
        if len(found) < 2:
            if dim in demanded:
                raise ConversionError(
                    f"dim '{dim}' was asked to be dynamic, but the original model does not answer at"
                    f" other sizes than {size}; leave it fixed, or mend the model"
                )
            axes = {n: {a: d for a, d in by.items() if d != dim} for n, by in axes.items()}
            notes.append(f"dim '{dim}' stays fixed at {size}: the original answers at no other size")
            continue
        points += found
        sizes_of[dim] = [int(point.name.partition("=")[2]) for point in found]
    if len(sizes_of) > 1:
        sizes = {dim: sizes[-1] for dim, sizes in sizes_of.items()}
        name = ", ".join(f"{dim}={size}" for dim, size in sizes.items())
        joint = _ask(flat, _resized(flat, axes, sizes), name, frozenset(sizes))
        if isinstance(joint, Point):
            points.append(joint)

    example = flat.example
    if example_sizes.get(BATCH) == 1 and BATCH in sizes_of:
        # exporters take a size of 1 as a constant
        example = _resized(flat, axes, {BATCH: 2})
    return _points(flat, example, axes, points, notes)


def fix_dims(flat: FlatModule, points: Points, dims: frozenset[str], reason: str) -> Points:
    """New points at which `dims` keep their size; `reason` goes to the notes.

    A fixed batch is fixed at 1, over which callers can always loop.
    """
    if BATCH in dims:
        flat.example = _resized(flat, points.axes, {BATCH: 1})
    axes = {n: {a: d for a, d in by.items() if d not in dims} for n, by in points.axes.items()}
    fixed = make_points(flat, {}, axes)
    notes = [f"dim '{dim}' is fixed: {reason}" for dim in sorted(dims)]
    return replace(fixed, notes=(*points.notes, *notes, *fixed.notes))


def traced_elsewhere(flat: FlatModule, points: Points, dims: frozenset[str]) -> Points:
    """The same points, but with an example for exporters at which `dims` have other sizes.

    An example may be special: where a Swin's last stage is a single window, exporters take the
    number of windows for the constant 1.
    """
    sizes: dict[str, int] = {}
    for point in points.points:
        if len(point.varied) == 1 and point.varied <= dims:
            (dim,) = point.varied
            sizes.setdefault(dim, _size_of(dim, points.axes, point.feeds))
    example = _resized(flat, points.axes, {BATCH: 2, **sizes})
    said = ", ".join(f"{dim}={size}" for dim, size in sorted(sizes.items()))
    return replace(points, example=example, notes=(*points.notes, f"it was traced at {said}"))


def _size_of(dim: str, axes: Axes, feeds: Mapping[str, Array]) -> int:
    return next(feeds[n].shape[a] for n, by in axes.items() for a, d in by.items() if d == dim)


def _points(
    flat: FlatModule,
    example: list[torch.Tensor],
    axes: dict[str, dict[int, str]],
    points: Sequence[Point],
    notes: Sequence[str],
) -> Points:
    inputs = tuple(
        TensorSpec(name, array.dtype.name, tuple(axes[name].get(i, n) for i, n in enumerate(array.shape)))
        for name, array in points[0].feeds.items()
    )
    return Points(example, axes, tuple(points), inputs, _output_specs(axes, points), tuple(notes))


def _answers_at(flat: FlatModule, axes: Axes, dim: str, size: int, *, demanded: bool) -> list[Point]:
    """Two points at other sizes that the original answers, or fewer if there are none."""

    def ask(sizes: Iterable[int]) -> Iterator[Point]:
        for other in dict.fromkeys(n for n in sizes if n > 1 or dim == BATCH):
            point = _ask(flat, _resized(flat, axes, {dim: other}), f"{dim}={other}", frozenset([dim]))
            if isinstance(point, Point) and (demanded or dim != BATCH or _has_rows(point, other)):
                yield point

    if dim == BATCH:
        return list(islice(ask(n for n in (1, 3, 2) if n != size), 2))
    # an awkward size near by shows what was baked in; a far one, that the dim really varies: a
    # model that rounds to whole patches takes any size that rounds to the example's
    near = list(islice(ask(n for n in (size + 3, size * 2 // 3 | 1, size + 1, size - 1) if n != size), 1))
    far = list(islice(ask((size * 2, size // 2, size * 3, size * 3 // 2)), 2 - len(near)))
    return near + far if far else []


def _has_rows(point: Point, size: int) -> bool:
    """Whether rows went in and rows came out; an axis that is merely resized is not a batch."""
    return any(a.ndim and a.shape[0] == size for a in point.outputs.values())


def _ask(
    flat: FlatModule, tensors: Sequence[torch.Tensor], name: str, varied: frozenset[str]
) -> Point | Exception:
    try:
        with torch.no_grad(), pristine(flat.module):
            # some models write into their inputs
            outputs = flat(*[t.clone() for t in tensors])
    except ConversionError:
        raise
    except Exception as error:  # whatever a user's module raises at a size it cannot take
        return error
    return Point(
        name,
        varied,
        {n: to_numpy(t) for n, t in zip(flat.input_names, tensors, strict=True)},
        {n: to_numpy(t) for n, t in zip(flat.output_names, outputs, strict=True)},
    )


def to_numpy(tensor: torch.Tensor) -> Array:
    """A contiguous copy; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.numpy(), order="C")


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    # threads may sum in another order, so bit equality is not asked for
    return a.keys() == b.keys() and all(
        a[n].shape == b[n].shape
        and (
            np.allclose(a[n], b[n], rtol=1e-3, atol=1e-5, equal_nan=True)
            if a[n].dtype.kind == "f"
            else np.array_equal(a[n], b[n])
        )
        for n in a
    )


def _sizes(flat: FlatModule, axes: Axes) -> dict[str, int]:
    """The example's size of each dim. Raises `ConversionError` if two inputs disagree."""
    sizes: dict[str, int] = {}
    for name, tensor in zip(flat.input_names, flat.example, strict=True):
        for axis, dim in axes[name].items():
            if sizes.setdefault(dim, tensor.shape[axis]) != tensor.shape[axis]:
                raise ConversionError(
                    f"the example inputs disagree on dim '{dim}': it is {sizes[dim]}, but axis {axis}"
                    f" of '{name}' is {tensor.shape[axis]}; name that axis differently with"
                    f" --dynamic {name}:{axis}=OTHER"
                )
    return sizes


def _resized(flat: FlatModule, axes: Axes, sizes: Mapping[str, int]) -> list[torch.Tensor]:
    """The example with some dims of other sizes; values stay within those of the example."""
    rng = np.random.default_rng(0)
    resized = []
    for name, tensor in zip(flat.input_names, flat.example, strict=True):
        shape = [sizes.get(axes[name].get(axis, ""), size) for axis, size in enumerate(tensor.shape)]
        resized.append(_resample(name, tensor, shape, rng))
    return resized


def _resample(name: str, tensor: torch.Tensor, shape: list[int], rng: np.random.Generator) -> torch.Tensor:
    if list(tensor.shape) == shape or tensor.numel() == 0:
        return tensor
    if tensor.is_floating_point():
        pick = torch.from_numpy(rng.integers(0, tensor.numel(), size=shape))
        return tensor.reshape(-1)[pick]
    if "mask" in name and tensor.dim() == 2 and bool(((tensor == 0) | (tensor == 1)).all()):
        # each row a little shorter than the one before, as a padded batch is
        rows, length = shape
        lengths = torch.tensor([max(1, length - row * (length // 3)) for row in range(rows)])
        return (torch.arange(length) < lengths[:, None]).to(tensor.dtype)
    for axis, size in enumerate(shape):
        # ids: the example repeated or cut, each repetition shifted so that rows differ
        old = tensor.shape[axis]
        if size != old:
            index = torch.arange(size)
            tensor = tensor.index_select(axis, index % old)
            if axis == 0 and tensor.dim() > 1 and size > old:
                tensor[old:] = tensor[old:].roll(1, dims=-1)
    return tensor


def _output_specs(axes: Axes, points: Sequence[Point]) -> tuple[TensorSpec, ...]:
    """Output dims from what was observed: equal to an input's dim at all points, constant, or free."""
    bound = []
    for point in points:
        bound.append(
            {
                dim: point.feeds[name].shape[axis]
                for name, by_axis in axes.items()
                for axis, dim in by_axis.items()
            }
        )
    specs = []
    for name, first in points[0].outputs.items():
        arrays = [point.outputs.get(name) for point in points]
        if any(a is None or a.ndim != first.ndim or a.dtype != first.dtype for a in arrays):
            raise ConversionError(
                f"output '{name}' changes its rank or type from input to input; a graph's outputs"
                f" cannot, so wrap the model to return one form"
            )
        shapes = [a.shape for a in arrays if a is not None]
        dims = tuple(
            _dim(name, axis, [shape[axis] for shape in shapes], bound) for axis in range(first.ndim)
        )
        specs.append(TensorSpec(name, "string" if first.dtype == object else first.dtype.name, dims))
    return tuple(specs)


def _dim(output: str, axis: int, sizes: list[int], bound: list[dict[str, int]]) -> Dim:
    if len(set(sizes)) == 1:
        return sizes[0]
    for dim in bound[0]:
        if all(b[dim] == size for b, size in zip(bound, sizes, strict=True)):
            return dim
    return f"{output}_dim{axis}"


def _check_axes(flat: FlatModule, explicit: Axes) -> None:
    for name, by_axis in explicit.items():
        if name not in flat.input_names:
            raise ConversionError(
                f"--dynamic names input '{name}', but the inputs are {', '.join(flat.input_names)}"
            )
        rank = flat.example[flat.input_names.index(name)].dim()
        for axis in by_axis:
            if not 0 <= axis < rank:
                raise ConversionError(
                    f"--dynamic names axis {axis} of input '{name}', which has only {rank} axes"
                )


def _shown(flat: FlatModule) -> str:
    return "; ".join(
        f"{name}: {str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
        for name, t in zip(flat.input_names, flat.example, strict=True)
    )
