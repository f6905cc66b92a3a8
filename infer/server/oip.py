"""The wire format of the Open Inference Protocol, version 2: bytes to feeds, and outputs to bytes.

A body is JSON, or JSON followed by the bytes of its binary tensors in the order of the inputs, if the
header `Inference-Header-Content-Length` says how long the JSON is.

Source: KServe, open-inference-protocol/specification/protocol/inference_rest.md, and Triton's extensions
protocol/extension_binary_data.md.
"""

from __future__ import annotations

import gc
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer.errors import InputError, missing_package
from infer.server.tensors import DATATYPES, MAX_ELEMENTS, json_values, pack, read_json, unpack
from infer.signature import Array, Signature
from infer.wording import excerpt

try:
    import orjson
except ImportError as _error:
    raise missing_package("orjson", "serve", _error) from _error

EXTENSIONS = ("binary_tensor_data",)

MAX_JSON_VALUES = 2**22
"""The most values of a JSON text: as Python objects they take 30 to 70 bytes each."""

_PAUSING = threading.Lock()
_MAX_RANK = 64  # numpy's own limit
_MAX_ID_CHARACTERS = 1024
_UNSUPPORTED = ("shared_memory_region", "classification")


@dataclass(frozen=True)
class WantedOutput:
    """An output that a request names, and whether its values shall be binary."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request as it was sent.

    Attributes:
        id: the caller's own, to be sent back.
        feeds: arrays by input name; they may be views of the body.
        outputs: those that are wanted; all of them, binary if `binary`, if none are named.
        timeout_s: how long the caller wants to wait.
    """

    id: str | None
    feeds: dict[str, Array]
    outputs: tuple[WantedOutput, ...]
    binary: bool
    timeout_s: float | None

    @property
    def names(self) -> list[str] | None:
        """Names of the wanted outputs, None for all."""
        return [output.name for output in self.outputs] or None


def json_length(header: str | None, size_bytes: int) -> int | None:
    """What `Inference-Header-Content-Length` of a body of `size_bytes` says. Raises `InputError`."""
    if header is None:
        return None
    # int() also reads 1_2, blanks, signs and the digits of other scripts
    if not re.fullmatch("[0-9]{1,19}", header, re.ASCII) or int(header) > size_bytes:
        raise InputError(
            f"Inference-Header-Content-Length must be the number of bytes of the JSON, 0 to {size_bytes}"
            f" here, in digits, but is {excerpt(header)}"
        )
    return int(header)


def load_json(text: bytes | bytearray) -> dict[str, Any]:
    """The JSON object `text`. Raises `InputError`."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_JSON_VALUES:
        raise InputError(f"the JSON has more than {MAX_JSON_VALUES} values; send tensors in binary form")
    try:
        data = _parsed(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"the body must be a JSON object, but is {excerpt(data)}")
    return data


def _parsed(text: bytes | bytearray) -> Any:
    """What `text` says, read without looks for garbage: JSON has no cycles, and all else stands meanwhile.

    Looking through a million lists again and again took seven eighths of the time.
    """
    if not _PAUSING.acquire(blocking=False):  # another thread would take our pause for the usual state
        return orjson.loads(text)
    collects = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(text)
    finally:
        if collects:
            gc.enable()
        _PAUSING.release()


def dump_json(data: Any) -> bytes:
    """`data` as JSON; arrays of numbers in it become lists, and floats that are not finite null."""
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def parse_request(body: bytes, length: int | None = None) -> InferRequest:
    """The request in `body`, of which `length` bytes are JSON, all by default. Raises `InputError`."""
    whole = memoryview(body)
    length = len(whole) if length is None else length
    text, rest = bytes(whole[:length]), whole[length:]
    data = load_json(text)
    booleans = b"true" in text or b"false" in text
    parameters = _parameters(data, "the request")
    feeds: dict[str, Array] = {}
    for item in _objects(data, "inputs", required=True):
        name = _text(item, "name", "an input")
        if name in feeds:
            raise InputError(f"the input {excerpt(name)} is given twice")
        feeds[name], rest = _tensor(item, f"the input {excerpt(name)}", rest, booleans)
    if len(rest):
        raise InputError(f"{len(rest)} bytes follow the last tensor; their sizes must add up to the body")
    binary = _flag(parameters, "binary_data_output", "the request", False)
    return InferRequest(
        _id(data), feeds, _wanted(data, binary), binary, timeout_s(parameters.get("timeout"))
    )


def dump_answer(
    outputs: Mapping[str, Array], request: InferRequest, name: str, version: str
) -> tuple[bytes, int | None]:
    """The answer to `request` of version `version` of the model `name`, and the length of its JSON if bytes
    follow it. Raises `InputError` for an output that has no JSON form."""
    wanted = request.outputs or [WantedOutput(output, request.binary) for output in outputs]
    described, parts = [], []
    for output in wanted:
        array = outputs[output.name]
        datatype = DATATYPES["string" if array.dtype == object else array.dtype.name]
        item: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(array.shape)}
        if output.binary:
            part = pack(array)
            item["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            item["data"] = json_values(array, output.name)
        described.append(item)
    answer = {"model_name": name, "model_version": version, "outputs": described}
    text = dump_json(answer if request.id is None else {"id": request.id, **answer})
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def describe(signature: Signature) -> dict[str, Any]:
    """The tensors of a signature, as a model's metadata has them; -1 is a size that varies."""
    return {
        kind: [
            {
                "name": spec.name,
                "datatype": DATATYPES[spec.dtype],
                "shape": [dim if isinstance(dim, int) else -1 for dim in spec.dims],
            }
            for spec in specs
        ]
        for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def _objects(data: Mapping[str, Any], key: str, *, required: bool = False) -> list[dict[str, Any]]:
    items = data.get(key)
    if items is None and not required:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"'{key}' must be a list of objects, but is {excerpt(items)}")
    return items


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InputError(f"'{key}' of {where} must be a string, but is {excerpt(value)}")
    return value


def _parameters(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = item.get("parameters")
    if value is not None and not isinstance(value, dict):
        raise InputError(f"'parameters' of {where} must be an object, but is {excerpt(value)}")
    found: dict[str, Any] = value or {}
    refuse_unsupported(found, where)
    return found


def refuse_unsupported(parameters: Mapping[str, Any], where: str) -> None:
    """Raises `InputError` for parameters that would change the answer, and are not known here."""
    if given := [key for key in _UNSUPPORTED if key in parameters]:
        raise InputError(f"{where} has the parameter '{given[0]}', which this server does not support")


def _flag(parameters: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"the parameter '{key}' of {where} must be true or false, but is {excerpt(value)}")
    return value


def _id(data: Mapping[str, Any]) -> str | None:
    return None if data.get("id") is None else checked_id(_text(data, "id", "the request"))


def checked_id(value: str) -> str:
    """`value`, if it may be a request's id. Raises `InputError`."""
    if len(value) > _MAX_ID_CHARACTERS:
        raise InputError(f"'id' has {len(value)} characters; it may have {_MAX_ID_CHARACTERS}")
    return value


def timeout_s(value: Any) -> float | None:
    """Triton's parameter, in microseconds; 0 means none. Raises `InputError`."""
    if value is None or value == 0:
        return None
    if type(value) is not int or value < 0:
        raise InputError(f"the parameter 'timeout' must be microseconds above 0, but is {excerpt(value)}")
    return value / 1e6


def _wanted(data: Mapping[str, Any], binary: bool) -> tuple[WantedOutput, ...]:
    found: dict[str, WantedOutput] = {}
    for item in _objects(data, "outputs"):
        name = _text(item, "name", "an output")
        if name in found:
            raise InputError(f"the output {excerpt(name)} is asked for twice")
        where = f"the output {excerpt(name)}"
        found[name] = WantedOutput(name, _flag(_parameters(item, where), "binary_data", where, binary))
    return tuple(found.values())


def _tensor(
    item: Mapping[str, Any], where: str, rest: memoryview, booleans: bool
) -> tuple[Array, memoryview]:
    """The array that `item` describes, and what is left of `rest`, where it is if it is binary; `booleans`:
    whether true or false is anywhere in the JSON."""
    shape = checked_shape(item.get("shape"), where)
    datatype = checked_datatype(_text(item, "datatype", where), where)
    size = _parameters(item, where).get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise InputError(f"{where} has neither 'data' nor the parameter 'binary_data_size'")
        return read_json(item["data"], datatype, shape, where, booleans=booleans), rest
    if "data" in item:
        raise InputError(f"{where} has both 'data' and the parameter 'binary_data_size'; give one")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InputError(
            f"'binary_data_size' of {where} must be 0 to {len(rest)}, the bytes that are left of the body,"
            f" but is {excerpt(size)}"
        )
    return unpack(rest[:size], datatype, shape, where), rest[size:]


def checked_datatype(datatype: str, where: str) -> str:
    """`datatype`, if it is one of the protocol's. Raises `InputError`."""
    if datatype not in DATATYPES.values():
        raise InputError(
            f"'datatype' of {where} must be one of {', '.join(DATATYPES.values())},"
            f" but is {excerpt(datatype)}"
        )
    return datatype


def checked_shape(shape: Any, where: str) -> list[int]:
    """`shape`, if arrays can have it. Raises `InputError`."""
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise InputError(f"'shape' of {where} must be a list of sizes, 0 or more, but is {excerpt(shape)}")
    if len(shape) > _MAX_RANK:
        raise InputError(f"'shape' of {where} has {len(shape)} dims; it may have {_MAX_RANK}")
    if math.prod(max(1, dim) for dim in shape) > MAX_ELEMENTS:
        raise InputError(f"{where} of shape {excerpt(shape, 80)} has more than {MAX_ELEMENTS} elements")
    return shape
