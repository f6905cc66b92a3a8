"""Reads what we must know of an `.onnx` file without the onnx package: signature, opset, operators,
and which external data files it points to.

It walks the protobuf wire format (protobuf.dev/programming-guides/encoding) and looks only at the
fields below, numbered as in onnx.proto. Weights are skipped over, not read. It is a check
before a backend sees the file: sizes and nesting are bounded and every fault is an `ArtifactError`.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infer.errors import ArtifactError
from infer.signature import Dim, Signature, TensorSpec

_ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_NESTING = 32  # graphs inside nodes inside graphs


@dataclass
class GraphFile:
    """What an `.onnx` file says about itself."""

    signature: Signature
    opset: int
    opsets: dict[str, int]
    operators: Counter[str]
    external_files: frozenset[str]


@dataclass
class _Found:
    inputs: list[memoryview] = field(default_factory=list)
    outputs: list[memoryview] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    operators: Counter[str] = field(default_factory=Counter)
    external_files: set[str] = field(default_factory=set)
    opsets: dict[str, int] = field(default_factory=dict)
    has_graph: bool = False


def read_graph_file(path: Path) -> GraphFile:
    """Read the outline of the ONNX model at `path`. Raises `ArtifactError` if it is not one."""
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"'{path}' is not a file; expected an ONNX model")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ArtifactError(f"'{path}' is empty; it is not an ONNX model")
            # unmapped once the last view of it is gone, which a traceback may keep for a while
            return _read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no file '{path}'; check the path") from error
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror}") from error
    except (_WireError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"'{path}' is not an ONNX model, or is damaged ({error}); export it again"
        ) from error


class _WireError(ValueError):
    pass


def _read(view: memoryview) -> GraphFile:
    found = _Found()
    for number, value in _fields(view):
        if number == 7:  # ModelProto.graph; a repeated one is merged, as protobuf does
            found.has_graph = True
            _read_graph(_bytes(value), found, top=True, depth=0)
        elif number == 8:  # ModelProto.opset_import
            domain, version = _read_pair(_bytes(value))
            found.opsets[domain] = version
        elif number == 25:  # ModelProto.functions
            for inner, part in _fields(_bytes(value)):
                if inner == 7:
                    _read_node(_bytes(part), found, 0)
                elif inner == 11:  # attribute_proto: attributes with default values
                    _read_attribute(_bytes(part), found, 0)
    if not found.has_graph or not found.opsets:
        raise _WireError("it has no graph" if not found.has_graph else "it imports no opset")
    # before IR version 4 every initializer was also listed as an input
    inputs = [v for v in found.inputs if _name(v) not in found.initializers]
    signature = Signature(
        tuple(_read_value(v, needs_shape=True) for v in inputs),
        tuple(_read_value(v, needs_shape=False) for v in found.outputs),
    )
    opset = found.opsets.get("", found.opsets.get("ai.onnx", 0))
    return GraphFile(signature, opset, found.opsets, found.operators, frozenset(found.external_files))


def _read_graph(view: memoryview, found: _Found, *, top: bool, depth: int) -> None:
    if depth > _MAX_NESTING:
        raise _WireError(f"graphs are nested more than {_MAX_NESTING} deep")
    for number, value in _fields(view):
        if number == 1:  # node
            _read_node(_bytes(value), found, depth)
        elif number == 5:  # initializer
            name = _read_tensor(_bytes(value), found)
            if top:
                found.initializers.add(name)
        elif number == 15:  # sparse_initializer
            name = _read_sparse(_bytes(value), found)
            if top:
                found.initializers.add(name)
        elif number == 11 and top:  # input
            found.inputs.append(_bytes(value))
        elif number == 12 and top:  # output
            found.outputs.append(_bytes(value))


def _read_node(view: memoryview, found: _Found, depth: int) -> None:
    op_type = domain = ""
    for number, value in _fields(view):
        if number == 4:
            op_type = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _read_attribute(_bytes(value), found, depth)
    found.operators[f"{domain}.{op_type}" if domain not in ("", "ai.onnx") else op_type] += 1


def _read_attribute(view: memoryview, found: _Found, depth: int) -> None:
    for number, value in _fields(view):
        if number in (5, 10):  # t, tensors
            _read_tensor(_bytes(value), found)
        elif number in (6, 11):  # g, graphs
            _read_graph(_bytes(value), found, top=False, depth=depth + 1)
        elif number in (22, 23):  # sparse_tensor, sparse_tensors
            _read_sparse(_bytes(value), found)


def _read_sparse(view: memoryview, found: _Found) -> str:
    """SparseTensorProto: values, which bear the name, and indices."""
    name = ""
    for number, value in _fields(view):
        if number == 1:
            name = _read_tensor(_bytes(value), found)
        elif number == 2:
            _read_tensor(_bytes(value), found)
    return name


def _read_tensor(view: memoryview, found: _Found) -> str:
    """Note where the tensor's external data lies; its name."""
    name = ""
    for number, value in _fields(view):
        if number == 8:
            name = _text(value)
        elif number == 13:  # external_data, a key and a value
            entry = {inner: _text(item) for inner, item in _fields(_bytes(value))}
            if entry.get(1) == "location":
                found.external_files.add(entry.get(2, ""))
    return name


def _read_pair(view: memoryview) -> tuple[str, int]:
    """OperatorSetIdProto: domain, version."""
    fields = dict(_fields(view))
    version = fields.get(2, 0)
    if not isinstance(version, int):
        raise _WireError("an opset version is not a number")
    return _text(fields.get(1, memoryview(b""))), version


def _name(view: memoryview) -> str:
    """The name of a ValueInfoProto."""
    return _text(dict(_fields(view)).get(1, memoryview(b"")))


def _read_value(view: memoryview, *, needs_shape: bool) -> TensorSpec:
    """ValueInfoProto with a tensor type."""
    name = _name(view)
    value = dict(_fields(view))
    kind = dict(_fields(_bytes(value.get(2, memoryview(b"")))))
    if 1 not in kind:
        raise ArtifactError(f"tensor '{name}' of the model is not a plain tensor; infer runs only those")
    tensor = dict(_fields(_bytes(kind[1])))
    code = tensor.get(1, 0)
    if code not in _ELEMENT_TYPES:
        raise ArtifactError(
            f"tensor '{name}' has ONNX element type {code}, which infer cannot feed from numpy;"
            f" cast it inside the graph to one of {', '.join(_ELEMENT_TYPES.values())}"
        )
    if needs_shape and 2 not in tensor:
        raise ArtifactError(
            f"input '{name}' of the model declares no shape, not even how many dims it has, so feeds"
            f" cannot be checked; give it a shape, with names for sizes that vary, and save it again"
        )
    dims: list[Dim] = []
    for number, dim in _fields(_bytes(tensor.get(2, memoryview(b"")))):
        if number == 1:
            fields = dict(_fields(_bytes(dim)))
            size, label = fields.get(1), _text(fields.get(2, memoryview(b"")))
            known = isinstance(size, int) and 0 <= size < 2**63
            dims.append(size if known and isinstance(size, int) else label or f"{name}_dim{len(dims)}")
    return TensorSpec(name, _ELEMENT_TYPES[int(str(code))], tuple(dims))


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The (field number, value) pairs of one message; numbers for varints, views for bytes."""
    position, end = 0, len(view)
    while position < end:
        key, position = _varint(view, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _WireError("field number 0")
        if kind == _VARINT:
            value, position = _varint(view, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(view, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _WireError(f"wire type {kind}")
        if length > end - position:
            raise _WireError("it is cut short")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise _WireError("it is cut short")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _WireError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
