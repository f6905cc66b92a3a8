"""Test points: inputs of several sizes, and the original's answers to them.

An export that is right at the example's size may be wrong at every other: padding computed from
the example, positions baked in, a batch size frozen. So the original is asked at other batch
sizes, lengths and resolutions too, and what it cannot do itself is never claimed of the artifact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from converters.flat import FlatModule
from converters.pristine import pristine
from infer.errors import ConversionError
from infer.feeds import EXAMPLE
from infer.signature import DTYPES, Array, Dim, Range, TensorSpec
from infer.structure import Structure

BATCH = "batch"
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Point:
    """Feeds, the original's outputs for them, and the sizes by which they differ from the example."""

    name: str
    varied: frozenset[str]
    feeds: dict[str, Array]
    outputs: dict[str, Array]
    structure: Structure = None

    @property
    def at_one(self) -> bool:
        """Whether all that is special here is one dim, not the batch, of size 1."""
        return self.name in {f"{dim}=1" for dim in self.varied - {BATCH}}


@dataclass(frozen=True)
class Points:
    """All points of a source; the first is the example it came with.

    `example` is what exporters trace: the same, but with at least two rows. `axes` are those
    that the original was seen to vary, `limits` the sizes it was made for.
    """

    example: list[torch.Tensor]
    axes: dict[str, dict[int, str]]
    points: tuple[Point, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]
    limits: Mapping[str, Range] = field(default_factory=dict)


def make_points(
    flat: FlatModule, explicit: Axes, usual: Axes, made_for: Sequence[Mapping[int, Range]] = ()
) -> Points:
    """Ask the original at the example and around it.

    Dims in `explicit` were demanded: if the original does not answer at other sizes, that is
    a `ConversionError`. Those in `usual` are dropped with a note instead. `made_for` has the sizes of
    axes of each input beyond which the original must not be asked.
    """
    _check_axes(flat, explicit)
    axes = {
        name: dict(sorted({**usual.get(name, {}), **explicit.get(name, {})}.items()))
        for name in flat.input_names
    }
    rank = {name: t.dim() for name, t in zip(flat.input_names, flat.example, strict=True)}
    axes = {name: {a: d for a, d in by.items() if a < rank[name]} for name, by in axes.items()}
    limits: dict[str, Range] = {}
    for by_axis, allowed in zip(axes.values(), made_for, strict=False):
        for axis in by_axis.keys() & allowed.keys():
            limits[by_axis[axis]] = allowed[axis] & limits.get(by_axis[axis], Range())
    demanded = {dim for by in explicit.values() for dim in by.values()}
    notes = []

    example_sizes = _sizes(flat, axes)
    first = _ask(flat, flat.example, EXAMPLE, frozenset())
    if isinstance(first, Exception):
        raise ConversionError(
            f"the model fails on its own example inputs: {type(first).__name__}: {first};"
            f" check their shapes and dtypes: {_shown(flat)}"
        ) from first
    _check_example(first)
    if kept := ", ".join(f"{name} = {value!r}" for name, value in flat.constants.items()):
        notes.append(f"inputs that are no tensors are part of the graph, as in the example: {kept}")
    again = _ask(flat, flat.example, EXAMPLE, frozenset())
    if isinstance(again, Exception) or not _same(first.outputs, again.outputs):
        raise ConversionError(
            "the model answers differently each time it is asked the same, so nothing can be proved"
            " about an export; remove the randomness (dropout outside of training mode, sampling)"
        )

    points = [first, *_other_values(flat)]
    if written := _buffers_written(flat):
        notes.append(
            f"the model writes into {', '.join(written)} when it is called; a graph has no memory, so it"
            f" always answers as the model did in the state it came in"
        )
    sizes_of: dict[str, list[int]] = {}
    for dim, size in example_sizes.items():
        found = _answers_at(flat, axes, dim, size, limits.get(dim, Range()))
        if len(found) >= 2 and dim not in demanded and not _followed(first, found, dim, size):
            axes = {n: {a: d for a, d in by.items() if d != dim} for n, by in axes.items()}
            notes.append(
                f"dim '{dim}' stays fixed at {size}: no output has an axis that follows it; if it may vary"
                f" all the same, say so with --dynamic"
            )
            continue
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
        if (
            dim != BATCH
            and 1 in limits.get(dim, Range())
            and isinstance(one := _ask_at(flat, axes, dim, 1), Point)
        ):
            points.append(one)
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
    _check_structure(points)
    limits = {dim: limit for dim, limit in limits.items() if dim in sizes_of}
    return replace(_points(flat, example, axes, points, notes), limits=limits)


def _check_structure(points: Sequence[Point]) -> None:
    """Raises `ConversionError` for Python numbers and texts in the outputs that are not constants."""
    for point in points:
        if point.structure != points[0].structure:
            raise ConversionError(
                f"what the model returns beside tensors changes with its inputs: {points[0].structure} at"
                f" {points[0].name}, but {point.structure} at {point.name}; a graph gives tensors only, so"
                f" return such numbers as tensors"
            )


def fix_dims(flat: FlatModule, points: Points, dims: frozenset[str], reason: str) -> Points:
    """New points at which `dims` keep their size; `reason` goes to the notes.

    A fixed batch is fixed at 1, over which callers can always loop.
    """
    if BATCH in dims:
        flat.example = _resized(flat, points.axes, {BATCH: 1})
    axes = {n: {a: d for a, d in by.items() if d not in dims} for n, by in points.axes.items()}
    made_for = [
        {axis: points.limits[dim] for axis, dim in by.items() if dim in points.limits}
        for by in axes.values()
    ]
    fixed = make_points(flat, {}, axes, made_for)
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
            sizes.setdefault(dim, size_of(dim, points.axes, point.feeds))
    example = _resized(flat, points.axes, {BATCH: 2, **sizes})
    said = ", ".join(f"{dim}={size}" for dim, size in sorted(sizes.items()))
    return replace(points, example=example, notes=(*points.notes, f"it was traced at {said}"))


def size_of(dim: str, axes: Axes, feeds: Mapping[str, Array]) -> int:
    """The size that `dim` has in `feeds`."""
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


def _check_example(point: Point) -> None:
    if not point.outputs:
        raise ConversionError(
            f"the model returns no tensor, but {point.structure}; a graph needs at least one output"
        )
    for name, array in point.feeds.items():
        if not array.size:
            raise ConversionError(
                f"the example of input '{name}' has shape {list(array.shape)}, so it holds nothing and"
                f" proves nothing; give one of at least one element"
            )
    floats = [a for a in point.outputs.values() if a.dtype.kind == "f" and a.size]
    if floats and len(floats) == len(point.outputs) and not any(np.isfinite(a).any() for a in floats):
        raise ConversionError(
            "the model answers nothing but NaN or infinity to its example, which proves nothing; check its"
            " weights and the example"
        )


def _other_values(flat: FlatModule) -> list[Point]:
    """The example with other signs and magnitudes, where the original answers with finite numbers: a
    branch that depends on values takes another side there."""
    points = []
    for factor in (-1.0, 16.0):
        tensors = [t * factor if t.is_floating_point() else t for t in flat.example]
        if all(torch.equal(t, given) for t, given in zip(tensors, flat.example, strict=True)):
            continue
        point = _ask(flat, tensors, f"example × {factor:g}", frozenset())
        if isinstance(point, Point) and all(
            np.isfinite(a).all() for a in point.outputs.values() if a.dtype.kind == "f"
        ):
            points.append(point)
    return points


def _buffers_written(flat: FlatModule) -> list[str]:
    with torch.no_grad(), pristine(flat.module) as written:
        flat(*[t.clone() for t in flat.example])
    return written


def _answers_at(flat: FlatModule, axes: Axes, dim: str, size: int, limit: Range) -> list[Point]:
    """Points at two or more other sizes that the original answers, or fewer if there are none."""

    def ask(sizes: Iterable[int]) -> Iterator[Point]:
        for other in dict.fromkeys(
            n for n in sizes if n != size and n in limit and (n > 1 or dim == BATCH)
        ):
            if isinstance(point := _ask_at(flat, axes, dim, other), Point):
                yield point

    if dim == BATCH:
        return list(ask((1, 3, 2)))
    # an awkward size near by shows what was baked in; a far one, that the dim really varies: a
    # model that rounds to whole patches takes any size that rounds to the example's
    near = list(islice(ask((size + 3, size * 2 // 3 | 1, size + 1, size - 1)), 1))
    far = list(islice(ask((size * 2, size // 2, size * 3, size * 3 // 2)), 2 - len(near)))
    return near + far if far else []


def _ask_at(flat: FlatModule, axes: Axes, dim: str, size: int) -> Point | Exception:
    return _ask(flat, _resized(flat, axes, {dim: size}), f"{dim}={size}", frozenset([dim]))


def _followed(first: Point, found: Sequence[Point], dim: str, size: int) -> bool:
    """Whether rows went in and rows came out: a batch that no output's axis follows is none."""
    if dim != BATCH:
        return True
    return any(
        array.shape[axis] == size
        and all(
            other.outputs[name].ndim == array.ndim
            and other.outputs[name].shape[axis] == int(other.name.partition("=")[2])
            for other in found
            if name in other.outputs
        )
        for name, array in first.outputs.items()
        for axis in range(array.ndim)
    )


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
        {n: to_numpy(t, n) for n, t in zip(flat.input_names, tensors, strict=True)},
        {n: to_numpy(t, n) for n, t in zip(flat.output_names, outputs, strict=True)},
        flat.structure,
    )


def to_numpy(tensor: torch.Tensor, name: str) -> Array:
    """A contiguous copy. Raises `ConversionError` for a kind of tensor that graphs cannot take or give."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_quantized or dtype not in DTYPES:
        kind = dtype if tensor.layout == torch.strided else f"{dtype}, {tensor.layout}"
        raise ConversionError(
            f"tensor '{name}' of the model is {kind}, which numpy cannot hold; wrap the model so that it is"
            f" a plain tensor of one of {', '.join(n for n in DTYPES if n != 'string')}"
        )
    return np.array(tensor.detach().cpu().numpy(), order="C")


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
        if all(new <= old for new, old in zip(shape, tensor.shape, strict=True)):
            return tensor[tuple(slice(size) for size in shape)].contiguous()
        # the example's values in another order; those that come again are a little off, because
        # of equal values torch and a graph may pick different ones as the largest
        count, known = math.prod(shape), tensor.numel()
        order = np.concatenate([rng.permutation(known) for _ in range(0, count, known)])[:count]
        again = np.where(np.arange(count) < known, 0.0, rng.standard_normal(count))
        jitter = torch.from_numpy(1.0 + 1e-2 * again).to(tensor.dtype)
        return (tensor.reshape(-1)[torch.from_numpy(order)] * jitter).reshape(shape)
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
