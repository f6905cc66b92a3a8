"""The values of tensors as the Open Inference Protocol sends them, binary and in JSON.

Binary values are little-endian; an element of BYTES is its length in four bytes, and itself. JSON has
lists, flat or nested as the shape is, without FP16; "NaN", "Infinity" and "-Infinity" stand for those that
it lacks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from infer.errors import InputError
from infer.signature import Array
from infer.wording import excerpt

DATATYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
"""Our dtypes → the protocol's."""

MAX_ELEMENTS = 2**28
"""The most elements of a tensor, where a dim of 0 counts as 1: a graph may drop the dim that is 0."""

_DTYPES = {
    wire: np.dtype(np.bool_ if ours == "bool" else ours).newbyteorder("<")
    for ours, wire in DATATYPES.items()
    if ours != "string"
}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def unpack(part: memoryview, datatype: str, shape: list[int], where: str) -> Array:
    """The array whose values `part` is; a view of it, but for BYTES. Raises `InputError`."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return _unpack_bytes(part, count, where).reshape(shape)
    dtype = _DTYPES[datatype]
    if len(part) != count * dtype.itemsize:
        raise InputError(
            f"{where} of shape {excerpt(shape, 80)} and {datatype} takes {count * dtype.itemsize} bytes,"
            f" but {len(part)} came"
        )
    return np.frombuffer(part, dtype).reshape(shape)


def _unpack_bytes(part: memoryview, count: int, where: str) -> Array:
    wrong = InputError(
        f"the bytes of {where} are not {count} elements, each with its length in 4 bytes before it"
    )
    if 4 * count > len(part):
        raise wrong
    items = np.empty(count, dtype=object)
    at = 0
    for i in range(count):
        if at + 4 > len(part):
            raise wrong
        (length,) = struct.unpack_from("<I", part, at)
        at += 4 + length
        if at > len(part):
            raise wrong
        items[i] = bytes(part[at - length : at])
    if at != len(part):
        raise wrong
    return items


def pack(array: Array) -> bytes:
    """The values of `array`, row by row."""
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [item.encode("utf-8") for item in array.ravel()]
    return b"".join(part for item in encoded for part in (struct.pack("<I", len(item)), item))


def read_json(data: Any, datatype: str, shape: list[int], where: str, *, booleans: bool = True) -> Array:
    """`data`, flat or nested as `shape` is, in the native dtype of `datatype`; `booleans`: whether true or
    false may be among it. Raises `InputError`."""
    if not isinstance(data, list):
        raise InputError(f"'data' of {where} must be a list, but is {excerpt(data)}")
    if datatype == "FP16":
        raise InputError(f"{where} is FP16, which has no JSON form; send it in binary form")
    try:
        found = np.asarray(data, dtype=object if datatype == "BYTES" else None)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"'data' of {where} is not nested evenly") from error
    count = math.prod(shape)
    # lists end where a dim is 0, whatever dims follow: [[]] is of shape (1, 0) and of (1, 0, 3)
    nested = found.shape == tuple(shape if count else shape[: found.ndim])
    if found.size != count or not (nested or found.ndim == 1):
        raise InputError(
            f"'data' of {where} has shape {excerpt(list(found.shape), 80)} where 'shape' is"
            f" {excerpt(shape, 80)}; it must have that, or be one list of its {count} values"
        )
    if booleans and datatype not in ("BYTES", "BOOL"):
        # numpy takes them for 1 and 0 where there are numbers, too
        for item in np.asarray(data, dtype=object).ravel():
            if isinstance(item, bool):
                raise InputError(f"'data' of {where} must be values of {datatype}, but holds {item}")
    if datatype == "BYTES":
        values = _strings(found, where)
    else:
        values = _numbers(found, data, _DTYPES[datatype].newbyteorder("="), datatype, where)
    return values.reshape(shape)


def _strings(found: Array, where: str) -> Array:
    if wrong := [item for item in found.ravel() if not isinstance(item, str)]:
        raise InputError(
            f"'data' of {where} must be strings, as it is BYTES, but holds {excerpt(wrong[0])}"
        )
    return found


def _numbers(found: Array, data: Sequence[Any], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    if found.size == 0:
        return np.empty(found.shape, dtype)
    kind = found.dtype.kind
    if dtype.kind == "f":
        if kind in "UO":  # strings among them, or integers beyond 64 bits
            found, kind = _floats(found, data, where), "f"
        if kind in "iuf":
            with np.errstate(over="ignore"):
                values = found.astype(dtype)
            if bool(np.all(np.isfinite(values) == np.isfinite(found))):
                return values
    elif dtype.kind == "b":
        if kind == "b":
            return found
    else:
        limits = np.iinfo(dtype)
        if kind in "fO" and dtype == np.uint64:
            # numpy reads integers on both sides of 2^63 as floats
            found = np.asarray(data, dtype=object)
            kind = "u" if all(type(item) is int for item in found.ravel()) else kind
        if kind in "iu" and limits.min <= found.min() and found.max() <= limits.max:
            return found.astype(dtype)
    raise InputError(
        f"'data' of {where} must be values of {datatype}, but holds others: {excerpt(data, 80)}"
    )


def _floats(found: Array, data: Sequence[Any], where: str) -> Array:
    """Numbers, and the strings that stand for those that JSON lacks."""
    values = np.empty(found.size, np.float64)
    for i, item in enumerate(np.asarray(data, dtype=object).ravel()):
        if isinstance(item, str) and item in _NOT_FINITE:
            item = _NOT_FINITE[item]
        if type(item) not in (int, float):
            raise InputError(f"'data' of {where} must be numbers, but holds {excerpt(item)}")
        try:
            values[i] = item
        except OverflowError as error:
            raise InputError(f"'data' of {where} holds {excerpt(item, 40)}…, which is no float") from error
    return values.reshape(found.shape)


def json_values(array: Array, name: str) -> Any:
    """The values in row-major order: a list, or an array of finite numbers. Raises `InputError`."""
    if array.dtype == np.float16:
        raise InputError(
            f"the output '{name}' is FP16, which has no JSON form; ask for it with the parameter"
            f" binary_data"
        )
    flat = np.ascontiguousarray(array).ravel()
    if array.dtype == object:
        return flat.tolist()
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        return [_finite_or_name(value) for value in flat.tolist()]
    return flat


def _finite_or_name(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
