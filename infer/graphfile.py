"""Reads what we must know of an `.onnx` file without the onnx package: signature, opset, operators,
and which external data files it points to.

It walks the protobuf wire format (protobuf.dev/programming-guides/encoding) and looks only at the
fields below, numbered as in onnx.proto. Weights are skipped over, not read. It is a check
before a backend sees the file: sizes and nesting are bounded and every fault is an `ArtifactError`.
So is whatever parsers of protobuf read in different ways, because the backend's is another one.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infer.errors import ArtifactError
from infer.signature import Dim, Signature, TensorSpec

_ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_SHORT_BYTES, _MAX_VARINT_BYTES = 5, 10  # of 32 and of 64 bits, 7 to a byte
_MAX_NESTING = 32  # graphs inside nodes inside graphs
_NO_NAMES = ("None", "none")  # what exporters write for a dim without a name, though it could be one


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


@dataclass
class _Value:
    """An input or output; a dim is None where the file gives it neither size nor name."""

    name: str
    dtype: str
    dims: list[Dim | None]


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
        elif number == 20:  # ModelProto.training_info: its initialization and algorithm are graphs
            for inner, part in _fields(_bytes(value)):
                if inner in (1, 2):
                    _read_graph(_bytes(part), found, top=False, depth=1)
    if not found.has_graph or not found.opsets:
        raise _WireError("it has no graph" if not found.has_graph else "it imports no opset")
    # before IR version 4 every initializer was also listed as an input
    inputs = [v for v in found.inputs if _name(v) not in found.initializers]
    values = [_read_value(v, needs_shape=True) for v in inputs]
    values += [_read_value(v, needs_shape=False) for v in found.outputs]
    specs = _name_dims(values)
    signature = Signature(specs[: len(inputs)], specs[len(inputs) :])
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
            entry = {inner: _text(item) for inner, item in _fields_once(_bytes(value)).items()}
            if entry.get(1) == "location":
                found.external_files.add(entry.get(2, ""))
    return name


def _read_pair(view: memoryview) -> tuple[str, int]:
    """OperatorSetIdProto: domain, version."""
    fields = _fields_once(view)
    return _text(fields.get(1, memoryview(b""))), _signed(fields.get(2, 0))


def _name(view: memoryview) -> str:
    """The name of a ValueInfoProto."""
    return _text(_fields_once(view, repeated=(4,)).get(1, memoryview(b"")))


def _read_value(view: memoryview, *, needs_shape: bool) -> _Value:
    """ValueInfoProto with a tensor type."""
    name = _name(view)
    kind = _fields_once(_bytes(_fields_once(view, repeated=(4,)).get(2, memoryview(b""))))
    if 1 not in kind or kind.keys() & {4, 5, 7, 8, 9}:  # sequence, map, opaque, sparse, optional
        raise ArtifactError(f"tensor '{name}' of the model is not a plain tensor; infer runs only those")
    tensor = _fields_once(_bytes(kind[1]))
    code = _signed(tensor.get(1, 0))
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
    dims = [
        _read_dim(_bytes(dim))
        for number, dim in _fields(_bytes(tensor.get(2, memoryview(b""))))
        if number == 1
    ]
    return _Value(name, _ELEMENT_TYPES[code], dims)


def _read_dim(view: memoryview) -> Dim | None:
    """TensorShapeProto.Dimension; None for one without a size or a name, such as "?" or -1."""
    fields = _fields_once(view)
    if 1 in fields and 2 in fields:
        raise _WireError("a dim has a size and a name")
    size, label = _signed(fields.get(1, -1)), _text(fields.get(2, memoryview(b"")))
    if size >= 0:
        return size
    return label if label.isidentifier() and label not in _NO_NAMES else None


def _name_dims(values: Sequence[_Value]) -> tuple[TensorSpec, ...]:
    """Specs in which each dim without a name has one of its own: no two of them need be of one size."""
    taken = {dim for value in values for dim in value.dims}
    labels: dict[tuple[str, int], str] = {}
    for value in values:
        for axis, dim in enumerate(value.dims):
            if dim is None and (value.name, axis) not in labels:
                label = f"{value.name}_dim{axis}"
                while label in taken:
                    label += "_"
                taken.add(label)
                labels[value.name, axis] = label
    return tuple(
        TensorSpec(
            v.name, v.dtype, tuple(labels[v.name, i] if d is None else d for i, d in enumerate(v.dims))
        )
        for v in values
    )


def _fields_once(view: memoryview, repeated: tuple[int, ...] = ()) -> dict[int, int | memoryview]:
    """The fields of a message by number. One given twice, which protobuf would merge, is refused."""
    found: dict[int, int | memoryview] = {}
    for number, value in _fields(view):
        if number in found and number not in repeated:
            raise _WireError(f"field {number} is given twice")
        found[number] = value
    return found


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The (field number, value) pairs of one message; numbers for varints, views for bytes.

    Values of 32 and 64 bits are passed over: no field that is looked at has one, and a parser takes a
    known field of another wire type for an unknown one.
    """
    position, end = 0, len(view)
    while position < end:
        # some parsers cut tags and lengths to 32 bits, and others do not
        key, position = _varint(view, position, _MAX_SHORT_BYTES)
        number, kind = key >> 3, key & 7
        if number == 0 or key >= 2**32:
            raise _WireError(f"field number {number}")
        if kind == _VARINT:
            value, position = _varint(view, position, _MAX_VARINT_BYTES)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(view, position, _MAX_SHORT_BYTES)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _WireError(f"wire type {kind}")
        if length > end - position:
            raise _WireError("it is cut short")
        if kind == _BYTES:
            yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int, max_bytes: int) -> tuple[int, int]:
    value = 0
    for place in range(max_bytes):
        if position >= len(view):
            raise _WireError("it is cut short")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, position
    raise _WireError(f"a number has more than {max_bytes} bytes")


def _signed(value: int | memoryview) -> int:
    """A varint as the int64 it stands for."""
    if not isinstance(value, int):
        raise _WireError("bytes where a number should be")
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _WireError("a number where a message should be")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
