"""Tensors in messages of gRPC: raw, as all bytes of a tensor, or typed, as a list of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from infer.errors import InputError
from infer.server.grpc_messages import MESSAGES
from infer.server.oip import (
    InferRequest,
    WantedOutput,
    checked_datatype,
    checked_id,
    checked_shape,
    refuse_unsupported,
    timeout_s,
)
from infer.server.tensors import DATATYPES, pack, unpack
from infer.signature import Array

_CONTENTS: dict[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "bool"),
    "INT8": ("int_contents", "int8"),
    "INT16": ("int_contents", "int16"),
    "INT32": ("int_contents", "int32"),
    "INT64": ("int64_contents", "int64"),
    "UINT8": ("uint_contents", "uint8"),
    "UINT16": ("uint_contents", "uint16"),
    "UINT32": ("uint_contents", "uint32"),
    "UINT64": ("uint64_contents", "uint64"),
    "FP32": ("fp32_contents", "float32"),
    "FP64": ("fp64_contents", "float64"),
    "BYTES": ("bytes_contents", "object"),
}
"""Datatype → the field that holds its values, and their dtype. FP16 has none: it is always raw."""


def read(name: str, sent: bytes) -> Any:
    """The message called `name` that `sent` is. Raises `InputError`."""
    try:
        return MESSAGES[name].FromString(sent)
    except DecodeError as error:
        raise InputError(f"the request is no {name}") from error


def parse(message: Any) -> InferRequest:
    """The request in a ModelInferRequest. Raises `InputError`."""
    parameters = _parameters(message, "the request")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InputError(
            f"'raw_input_contents' has {len(raw)} entries for {len(message.inputs)} inputs; it must have"
            f" one for each"
        )
    feeds: dict[str, Array] = {}
    for place, item in enumerate(message.inputs):
        where = f"the input {item.name!r:.60}"
        if item.name in feeds:
            raise InputError(f"{where} is given twice")
        _parameters(item, where)
        datatype, shape = checked_datatype(item.datatype, where), checked_shape(list(item.shape), where)
        if not raw:
            feeds[item.name] = _typed(item.contents, datatype, shape, where)
        elif item.HasField("contents"):
            raise InputError(f"{where} has 'contents', and the request 'raw_input_contents'; give one")
        else:
            feeds[item.name] = unpack(memoryview(raw[place]), datatype, shape, where)
    wanted: dict[str, WantedOutput] = {}
    for item in message.outputs:
        if item.name in wanted:
            raise InputError(f"the output {item.name!r:.60} is asked for twice")
        _parameters(item, f"the output {item.name!r:.60}")
        wanted[item.name] = WantedOutput(item.name, bool(raw))
    return InferRequest(
        checked_id(message.id) if message.id else None,
        feeds,
        tuple(wanted.values()),
        bool(raw),
        timeout_s(parameters.get("timeout")),
    )


def dump(outputs: Mapping[str, Array], request: InferRequest, name: str, version: str) -> Any:
    """The ModelInferResponse to `request`: raw as that was, and where an output has no typed form."""
    names = request.names or list(outputs)
    raw = request.binary or any(outputs[each].dtype == np.float16 for each in names)
    answer = MESSAGES["ModelInferResponse"](model_name=name, model_version=version, id=request.id or "")
    for each in names:
        array = outputs[each]
        datatype = DATATYPES["string" if array.dtype == object else array.dtype.name]
        item = answer.outputs.add(name=each, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(pack(array))
        else:
            values = array.ravel().tolist()
            if datatype == "BYTES":
                values = [value.encode("utf-8") for value in values]
            getattr(item.contents, _CONTENTS[datatype][0]).extend(values)
    return answer


def _parameters(item: Any, where: str) -> dict[str, Any]:
    found = {key: _value(parameter) for key, parameter in item.parameters.items()}
    refuse_unsupported(found, where)
    return found


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _typed(contents: Any, datatype: str, shape: list[int], where: str) -> Array:
    if datatype not in _CONTENTS:
        raise InputError(f"{where} is {datatype}, which has no typed form; send it in 'raw_input_contents'")
    field, dtype = _CONTENTS[datatype]
    if others := [given.name for given, _ in contents.ListFields() if given.name != field]:
        raise InputError(f"{where} is {datatype}, so its values belong in '{field}', not in '{others[0]}'")
    values, count = getattr(contents, field), math.prod(shape)
    if len(values) != count:
        raise InputError(f"{where} of shape {shape!r:.80} takes {count} values, but has {len(values)}")
    if dtype == "object":
        found = np.empty(count, object)
        found[:] = list(values)
        return found.reshape(shape)
    if dtype in ("bool", "float32", "float64"):
        return np.array(values, dtype).reshape(shape)
    wide = np.array(values, np.uint64 if dtype == "uint64" else np.int64)
    limits = np.iinfo(dtype)
    if count and not (limits.min <= wide.min() and wide.max() <= limits.max):
        raise InputError(f"'{field}' of {where} must be values of {datatype}, but holds others")
    return wide.astype(dtype).reshape(shape)
