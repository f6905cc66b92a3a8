"""The guard before every run: feeds in, equal to their native contiguous copies, or refused.

A backend does not look: ONNX Runtime reads a big-endian array as if it were native, ignores the
mask of a masked array, and takes bool bytes other than 0 and 1 as they are. Whatever passes here
is safe to hand over; everything else is refused with the tensor's name and a cure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.errors import FeedError
from infer.signature import Array, Dim, Range, Signature, TensorSpec

Shapes = tuple[tuple[int, ...], ...]

_MAX_FITTING = 1024  # remembered shapes, before all are forgotten


class Feeds(dict[str, Array]):
    """Arrays by input name, in the signature's order, that passed the guard; `shapes` are theirs.

    The arrays may be the caller's own; nothing writes to them.
    """

    __slots__ = ("shapes",)
    shapes: Shapes


class Guard:
    """Holds feeds to a signature. On a tiny model every 0.1 µs spent here shows."""

    def __init__(self, signature: Signature, *, refuse_nan: bool = False) -> None:
        self._signature = signature
        self._refuse_nan = refuse_nan
        # the dtype of arrays that need no look at their values; bools and strings always do
        self._specs = [
            (spec.name, None if spec.dtype in ("bool", "string") else spec.numpy_dtype, spec)
            for spec in signature.inputs
        ]
        # shapes that fitted before: most callers send few, and looking them up is cheaper
        self._fitting: set[Shapes] = set()

    def admit(self, feeds: Mapping[str, object]) -> Feeds:
        """Guarded feeds. Raises `FeedError` for a missing or unknown name, a wrong dtype, rank or size,
        data whose meaning would change, and symbolic dims bound to different sizes."""
        if (type(feeds) is not dict and not isinstance(feeds, Mapping)) or len(feeds) != len(self._specs):
            raise _wrong_names(self._signature, feeds)
        admitted = Feeds()
        shapes = []
        for name, as_is, spec in self._specs:
            value = feeds.get(name)
            # dtype objects of native builtin types are singletons, so identity compares them fully;
            # carray: C-contiguous, aligned and writeable, asked at once because each asking costs
            if type(value) is np.ndarray and value.dtype is as_is and value.flags.carray:
                array = value
            elif value is None and name not in feeds:
                raise _wrong_names(self._signature, feeds)
            else:
                array = _convert(spec, value)
            admitted[name] = array
            shapes.append(array.shape)
        admitted.shapes = fitting = tuple(shapes)
        if fitting not in self._fitting:
            self._check_shapes(fitting)
        if self._refuse_nan:
            _refuse_nan(admitted)
        return admitted

    def _check_shapes(self, shapes: Shapes) -> None:
        bound: dict[str, tuple[int, str]] = {}
        for spec, shape in zip(self._signature.inputs, shapes, strict=True):
            if len(shape) != len(spec.dims):
                raise _wrong_rank(spec, shape)
            for axis, (size, dim) in enumerate(zip(shape, spec.dims, strict=True)):
                if isinstance(dim, int):
                    if size != dim:
                        raise _wrong_size(spec, shape, axis)
                elif bound.setdefault(dim, (size, spec.name))[0] != size:
                    raise _inconsistent(spec, shape, axis, *bound[dim])
                elif dim in self._signature.limits and size not in self._signature.limits[dim]:
                    raise _beyond_limits(spec, shape, axis, self._signature.limits[dim])
        if len(self._fitting) >= _MAX_FITTING:
            self._fitting.clear()
        self._fitting.add(shapes)


def _convert(spec: TensorSpec, value: object) -> Array:
    """The slow, careful half of the guard: `value` as a native, contiguous, aligned array."""
    try:
        return _read(spec, value)
    except FeedError:
        raise
    except Exception as error:  # __array__ of any foreign type may run and raise anything
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but its"
            f" {type(value).__name__} cannot be read as one ({error}); pass a numpy array"
        ) from error


def _read(spec: TensorSpec, value: object) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.sum(np.ma.getmaskarray(value)))
        if masked:
            raise FeedError(
                f"input '{spec.name}' is a masked array with {masked} masked"
                f" values, and a graph has no notion of a mask; fill them first:"
                f" x.filled(value)"
            )
        value = value.data
    if isinstance(value, (list, tuple)):
        _refuse_masked_parts(spec, value)
    elif value is None:
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but None came; every input is needed"
        )
    if spec.dtype == "string":
        return _convert_strings(spec, value)
    has_dtype = hasattr(value, "dtype")
    array = np.asarray(value)
    if not has_dtype and array.dtype == np.float64 and spec.numpy_dtype.kind == "u":
        array = _exact(spec, value, array)
    if array.dtype == object and not has_dtype:
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but the given {type(value).__name__}"
            f" holds objects, or numbers beyond 64 bits; pass numbers only"
        )
    wanted = spec.numpy_dtype
    if (array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")) != wanted:
        if has_dtype:
            raise _wrong_dtype(spec, array)
        if not _fits(array, wanted):
            raise FeedError(
                f"input '{spec.name}' must be {spec.dtype}, but the given {type(value).__name__} holds"
                f" {array.dtype} values that do not fit; if rounding or wrapping them is what you mean,"
                f" pass np.asarray(x).astype(np.{_numpy_name(spec)})"
            )
        array = array.astype(wanted)
    array = np.require(array, dtype=wanted, requirements=["C", "A", "E"])
    if spec.dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
        array = array.view(np.uint8) != 0  # numpy's own reading of such bytes; the backend's differs
    return array


def _fits(array: Array, wanted: np.dtype[Any]) -> bool:
    """Whether plain Python numbers, read as `array`, mean the same as `wanted`."""
    if array.size == 0:
        return array.dtype.kind == "f"  # np.asarray([]) is float64 whatever was meant
    if wanted.kind == "f":
        if array.dtype.kind not in "fiu":
            return False
        with np.errstate(over="ignore"):
            return bool(np.all(np.isfinite(array.astype(wanted)) == np.isfinite(array)))
    if wanted.kind in "iu":
        if array.dtype.kind not in "iu":
            return False
        limits = np.iinfo(wanted)
        return int(array.min()) >= limits.min and int(array.max()) <= limits.max
    return False  # bool: lists of True and False already came as bool


def _exact(spec: TensorSpec, value: object, array: Array) -> Array:
    """numpy reads ints on both sides of 2^63 as floats; here they stay ints if that is what they are."""
    objects = np.asarray(value, dtype=object)
    limits = np.iinfo(spec.numpy_dtype)
    if all(isinstance(n, (int, np.integer)) and limits.min <= n <= limits.max for n in objects.flat):
        return objects.astype(spec.numpy_dtype)
    return array


def _refuse_masked_parts(spec: TensorSpec, value: Sequence[object]) -> None:
    """numpy drops the masks of masked arrays and of `np.ma.masked` inside of lists."""
    for item in value:
        if isinstance(item, (list, tuple)):
            _refuse_masked_parts(spec, item)
        elif isinstance(item, np.ma.MaskedArray):
            raise FeedError(
                f"input '{spec.name}' came as a list with masked arrays in it, and a graph has no"
                f" notion of a mask; fill them first: x.filled(value)"
            )


def _convert_strings(spec: TensorSpec, value: object) -> Array:
    array = np.asarray(value, dtype=object)
    strings = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        if isinstance(item, bytes):
            try:
                item = item.decode("utf-8")
            except UnicodeDecodeError as error:
                raise FeedError(
                    f"input '{spec.name}' must hold text, but the bytes at {list(index)} are not"
                    f" UTF-8 ({error.reason} at byte {error.start}); decode them yourself first"
                ) from error
        if not isinstance(item, str):
            raise FeedError(
                f"input '{spec.name}' must hold only str, but the value at {list(index)} is"
                f" {item!r:.60} ({type(item).__name__}); convert every element to str"
            )
        text = str.__str__(item)  # an enum's own str() is its name, not its value
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise FeedError(
                f"input '{spec.name}' must hold text, but the str at {list(index)} has a lone surrogate"
                f" and so is not valid Unicode; decode it again with errors='replace'"
            )
        strings[index] = text
    return strings


def _wrong_names(signature: Signature, feeds: object) -> FeedError:
    expected = "; ".join(str(spec) for spec in signature.inputs)
    if not isinstance(feeds, Mapping):
        return FeedError(
            f"feeds must be a mapping from input name to array, but a {type(feeds).__name__} came;"
            f" pass a dict with: {expected}"
        )
    missing = [spec.name for spec in signature.inputs if spec.name not in feeds]
    unknown = [str(name) for name in feeds if name not in {spec.name for spec in signature.inputs}]
    said = [f"lack {_quoted(missing)}"] if missing else []
    said += [f"have unknown {_quoted(unknown)}"] if unknown else []
    return FeedError(f"feeds {' and '.join(said)}; the inputs are {expected}")


def _wrong_dtype(spec: TensorSpec, array: Array) -> FeedError:
    return FeedError(
        f"input '{spec.name}' must be {spec.dtype}, but {array.dtype} came; if that conversion"
        f" is what you mean, pass x.astype(np.{_numpy_name(spec)})"
    )


def _numpy_name(spec: TensorSpec) -> str:
    return "bool_" if spec.dtype == "bool" else spec.dtype


def _wrong_rank(spec: TensorSpec, shape: tuple[int, ...]) -> FeedError:
    cure = f"; add the missing first axis with {'x[None]'}" if len(shape) == len(spec.dims) - 1 else ""
    return FeedError(
        f"input '{spec.name}' must have {len(spec.dims)} dims {_dims(spec.dims)}, but an array of"
        f" {len(shape)} dims, shape {list(shape)}, came{cure or '; reshape it'}"
    )


def _wrong_size(spec: TensorSpec, shape: tuple[int, ...], axis: int) -> FeedError:
    return FeedError(
        f"input '{spec.name}' must have shape {_dims(spec.dims)}, but {list(shape)} came: axis"
        f" {axis} must be {spec.dims[axis]}, not {shape[axis]}; this size is fixed in the graph,"
        f" so resize the array or convert the model with that dim dynamic"
    )


def _inconsistent(spec: TensorSpec, shape: tuple[int, ...], axis: int, size: int, first: str) -> FeedError:
    return FeedError(
        f"input '{spec.name}' of shape {list(shape)} has {spec.dims[axis]} = {shape[axis]} on axis"
        f" {axis}, but input '{first}' has {spec.dims[axis]} = {size}; they must be the same size"
    )


def _beyond_limits(spec: TensorSpec, shape: tuple[int, ...], axis: int, limits: Range) -> FeedError:
    return FeedError(
        f"input '{spec.name}' of shape {list(shape)} has {spec.dims[axis]} = {shape[axis]} on axis {axis},"
        f" but the model was converted for {limits}; cut or pad it, or convert the model for that size"
    )


def _dims(dims: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _refuse_nan(feeds: Feeds) -> None:
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
            raise FeedError(
                f"input '{name}' holds NaN or infinity, first at {first}, and this session refuses"
                f" them (refuse_nan); clean the data, or open the session without it"
            )
