"""The guard before every run: feeds in, equal to their native contiguous copies, or refused.

A backend does not look: ONNX Runtime reads a big-endian array as if it were native, ignores the
mask of a masked array, and takes bool bytes other than 0 and 1 as they are. Whatever passes here
is safe to hand over; everything else is refused with the tensor's name and a cure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.errors import FeedError, InputError
from infer.signature import Array, Dim, Range, Signature, TensorSpec

Shapes = tuple[tuple[int, ...], ...]

# Shapes that fitted and are remembered, before all are forgotten.
_MAX_SHAPES = 1024
# Types of the values that numpy may read as another dtype than the one wanted: they say none themselves.
_PLAIN = frozenset((bool, int, float))


class Feeds(dict[str, Array]):
    """Arrays by input name, in the signature's order, that passed the guard; `shapes` are theirs.

    The arrays may be the caller's own; nothing writes to them.
    """

    __slots__ = ("shapes",)
    shapes: Shapes

    @property
    def rows(self) -> int:
        """The size of the first input's first dim; 1 if it has none."""
        return self.shapes[0][0] if self.shapes and self.shapes[0] else 1


_Input = tuple[str, np.dtype[Any] | None, TensorSpec]
"""An input's name, the dtype of arrays for it that need no look at their values (None: all need one), and
its spec. A plain tuple, because a named one takes longer to unpack."""


class Guard:
    """Holds feeds to a signature. On a tiny model every 0.1 µs spent here shows."""

    def __init__(
        self, signature: Signature, *, refuse_nan: bool = False, max_bytes: int | None = None
    ) -> None:
        """Raises `InputError` for a limit that is none."""
        if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
            raise InputError(
                f"max_feed_bytes must be an int of 0 or more, or None, but is {max_bytes!r:.60}"
            )
        self._signature = signature
        self._refuse_nan = refuse_nan
        self._max_bytes = max_bytes
        self._inputs: tuple[_Input, ...] = tuple(
            (spec.name, None if spec.dtype in ("bool", "string") else spec.numpy_dtype, spec)
            for spec in signature.inputs
        )
        # most callers send few shapes, and looking them up is cheaper than checking them again
        self._checked: set[Shapes] = set()

    def admit(self, feeds: Mapping[str, object]) -> Feeds:
        """Guarded feeds. Raises `FeedError` for a missing or unknown name, a wrong dtype, rank or size,
        data whose meaning would change, symbolic dims bound to different sizes, and too many bytes."""
        if (type(feeds) is not dict and not isinstance(feeds, Mapping)) or len(feeds) != len(self._inputs):
            raise _wrong_names(self._signature, feeds)
        admitted = Feeds()
        sizes = []
        for name, unseen, spec in self._inputs:
            value = feeds.get(name)
            # dtype objects of native builtin types are singletons, so identity compares them fully;
            # carray: C-contiguous, aligned and writeable, asked at once because each asking costs
            if type(value) is np.ndarray and value.dtype is unseen and value.flags.carray:
                array = value
            elif value is None and name not in feeds:
                raise _wrong_names(self._signature, feeds)
            else:
                array = _convert(spec, value)
            admitted[name] = array
            sizes.append(array.shape)
        admitted.shapes = shapes = tuple(sizes)
        if shapes not in self._checked:
            self._check_shapes(shapes)
        if self._max_bytes is not None:
            _refuse_large(admitted, self._max_bytes)
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
        if len(self._checked) >= _MAX_SHAPES:
            self._checked.clear()
        self._checked.add(shapes)


def _convert(spec: TensorSpec, value: object) -> Array:
    """The slow, careful half of the guard: `value` as a native, contiguous, aligned array."""
    try:
        value = _without_mask(spec, value)
        return _read_strings(spec, value) if spec.dtype == "string" else _read_numbers(spec, value)
    except FeedError:
        raise
    except Exception as error:  # __array__ of any foreign type may run and raise anything
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but its"
            f" {type(value).__name__} cannot be read as one ({error}); pass a numpy array"
        ) from error


def _without_mask(spec: TensorSpec, value: object) -> object:
    """`value`, as an array if it says how to become one; refused if anything in it is masked."""
    if value is None:
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but None came; every input is needed"
        )
    if hasattr(value, "__array__"):
        value = np.asanyarray(value)  # a mask behind a foreign type's __array__ shows only now
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.sum(np.ma.getmaskarray(value)))
        if masked:
            raise FeedError(
                f"input '{spec.name}' is a masked array with {masked} masked"
                f" values, and a graph has no notion of a mask; fill them first:"
                f" x.filled(value)"
            )
        return value.data
    if _is_sequence(value):
        _refuse_masked_parts(spec, value)
    return value


def _is_sequence(value: object) -> bool:
    """Whether numpy looks for arrays inside of `value`, one item after another."""
    if isinstance(value, (list, tuple)):
        return True
    if isinstance(value, (str, bytes, bytearray, memoryview, range, np.ndarray, Mapping)):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _refuse_masked_parts(spec: TensorSpec, value: Any) -> None:
    """numpy drops the masks of masked arrays and of `np.ma.masked` inside of sequences."""
    if set(map(type, value)) <= _PLAIN:
        return
    for item in value:
        if _is_sequence(item) and not hasattr(item, "__array__"):
            _refuse_masked_parts(spec, item)
        elif hasattr(item, "__array__") and isinstance(np.asanyarray(item), np.ma.MaskedArray):
            raise FeedError(
                f"input '{spec.name}' came as a {type(value).__name__} with masked arrays in it, and a"
                f" graph has no notion of a mask; fill them first: x.filled(value)"
            )


def _read_numbers(spec: TensorSpec, value: object) -> Array:
    array = np.asarray(value)
    wanted = spec.numpy_dtype
    if (array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")) != wanted:
        array = _from_plain(spec, value, array)
    array = np.require(array, dtype=wanted, requirements=["C", "A", "E"])
    if spec.dtype == "bool" and array.size and int(array.view(np.uint8).max()) > 1:
        array = array.view(np.uint8) != 0  # numpy's own reading of such bytes; the backend's differs
    return array


def _from_plain(spec: TensorSpec, value: object, array: Array) -> Array:
    """`array`, which numpy read from `value` in a dtype of its choice, in the one that is wanted.

    Only numbers of Python leave that choice open; whatever has a dtype means it.
    """
    if array.dtype == object and not isinstance(value, np.ndarray):
        raise FeedError(
            f"input '{spec.name}' must be an array of {spec.dtype}, but the given {type(value).__name__}"
            f" holds objects, or numbers beyond 64 bits; pass numbers only"
        )
    if not _is_plain(value):
        raise _wrong_dtype(spec, value, array)
    if array.dtype == np.float64 and spec.numpy_dtype.kind == "u":
        array = _exact(spec, value, array)
    if not _fits(array, spec.numpy_dtype):
        raise FeedError(
            f"input '{spec.name}' must be {spec.dtype}, but the given {type(value).__name__} holds"
            f" {array.dtype} values that do not fit; if rounding or wrapping them is what you mean,"
            f" pass np.asarray(x).astype(np.{_numpy_name(spec)})"
        )
    return array.astype(spec.numpy_dtype)


def _is_plain(value: Any) -> bool:
    """Whether `value` is a number of Python, or lists and tuples of nothing else."""
    if isinstance(value, (list, tuple)):
        return set(map(type, value)) <= _PLAIN or all(map(_is_plain, value))
    return isinstance(value, (int, float)) and not isinstance(value, np.generic)


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
    if all(isinstance(n, int) and limits.min <= n <= limits.max for n in objects.flat):
        return objects.astype(spec.numpy_dtype)
    return array


def _read_strings(spec: TensorSpec, value: object) -> Array:
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


def _wrong_dtype(spec: TensorSpec, value: object, array: Array) -> FeedError:
    came = "x" if isinstance(value, np.ndarray) else "np.asarray(x)"
    return FeedError(
        f"input '{spec.name}' must be {spec.dtype}, but {array.dtype} came; if that conversion"
        f" is what you mean, pass {came}.astype(np.{_numpy_name(spec)})"
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


def size_bytes(array: Array) -> int:
    """Of an array's data; of strings, that of their characters, too."""
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype == object else 0)


def _refuse_large(feeds: Feeds, most: int) -> None:
    sizes = {name: size_bytes(array) for name, array in feeds.items()}
    if (total := sum(sizes.values())) > most:
        largest = max(sizes, key=lambda name: sizes[name])
        raise FeedError(
            f"the feeds have {total:,} bytes, of which input '{largest}' of shape"
            f" {list(feeds[largest].shape)} has {sizes[largest]:,}, and this session takes {most:,}"
            f" (max_feed_bytes); send fewer or smaller rows"
        )
