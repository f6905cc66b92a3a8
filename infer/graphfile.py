"""Reads what we must know of an `.onnx` file without the onnx package: signature, opset, operators,
and which external data files it points to.

It walks protobuf's wire format and looks only at the fields below, numbered as in onnx.proto. Weights are
skipped over, not read. It is a check before a backend sees the file: sizes and nesting are bounded and
every fault is an `ArtifactError`. So is whatever parsers of protobuf read in different ways, because the
backend's is another one.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from infer.errors import ArtifactError
from infer.signature import Dim, Signature, TensorSpec
from infer.wire import WireError, as_bytes, as_int, as_text, fields, fields_once

T = TypeVar("T")

_ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
MAX_NESTING = 32  # graphs inside nodes inside graphs
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
    return read_model(path, _read)


def read_model(path: Path, read: Callable[[memoryview], T]) -> T:
    """What `read` makes of the bytes of the ONNX model at `path`. Raises `ArtifactError`."""
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"'{path}' is not a file; expected an ONNX model")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ArtifactError(f"'{path}' is empty; it is not an ONNX model")
            # unmapped once the last view of it is gone, which a traceback may keep for a while
            return read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no file '{path}'; check the path") from error
    except OSError as error:
        raise ArtifactError(f"cannot read '{path}': {error.strerror}") from error
    except (WireError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"'{path}' is not an ONNX model, or is damaged ({error}); export it again"
        ) from error


def _read(view: memoryview) -> GraphFile:
    found = _Found()
    for number, value in fields(view):
        if number == 7:  # ModelProto.graph; a repeated one is merged, as protobuf does
            found.has_graph = True
            _read_graph(as_bytes(value), found, top=True, depth=0)
        elif number == 8:  # ModelProto.opset_import
            domain, version = _read_pair(as_bytes(value))
            found.opsets[domain] = version
        elif number == 25:  # ModelProto.functions
            for inner, part in fields(as_bytes(value)):
                if inner == 7:
                    _read_node(as_bytes(part), found, 0)
                elif inner == 11:  # attribute_proto: attributes with default values
                    _read_attribute(as_bytes(part), found, 0)
        elif number == 20:  # ModelProto.training_info: its initialization and algorithm are graphs
            for inner, part in fields(as_bytes(value)):
                if inner in (1, 2):
                    _read_graph(as_bytes(part), found, top=False, depth=1)
    if not found.has_graph or not found.opsets:
        raise WireError("it has no graph" if not found.has_graph else "it imports no opset")
    # before IR version 4 every initializer was also listed as an input
    inputs = [v for v in found.inputs if _name(v) not in found.initializers]
    values = [_read_value(v, needs_shape=True) for v in inputs]
    values += [_read_value(v, needs_shape=False) for v in found.outputs]
    specs = _name_dims(values)
    signature = Signature(specs[: len(inputs)], specs[len(inputs) :])
    opset = found.opsets.get("", found.opsets.get("ai.onnx", 0))
    return GraphFile(signature, opset, found.opsets, found.operators, frozenset(found.external_files))


def _read_graph(view: memoryview, found: _Found, *, top: bool, depth: int) -> None:
    if depth > MAX_NESTING:
        raise WireError(f"graphs are nested more than {MAX_NESTING} deep")
    for number, value in fields(view):
        if number == 1:  # node
            _read_node(as_bytes(value), found, depth)
        elif number == 5:  # initializer
            name = _read_tensor(as_bytes(value), found)
            if top:
                found.initializers.add(name)
        elif number == 15:  # sparse_initializer
            name = _read_sparse(as_bytes(value), found)
            if top:
                found.initializers.add(name)
        elif number == 11 and top:  # input
            found.inputs.append(as_bytes(value))
        elif number == 12 and top:  # output
            found.outputs.append(as_bytes(value))


def _read_node(view: memoryview, found: _Found, depth: int) -> None:
    op_type = domain = ""
    for number, value in fields(view):
        if number == 4:
            op_type = as_text(value)
        elif number == 7:
            domain = as_text(value)
        elif number == 5:
            _read_attribute(as_bytes(value), found, depth)
    found.operators[f"{domain}.{op_type}" if domain not in ("", "ai.onnx") else op_type] += 1


def _read_attribute(view: memoryview, found: _Found, depth: int) -> None:
    for number, value in fields(view):
        if number in (5, 10):  # t, tensors
            _read_tensor(as_bytes(value), found)
        elif number in (6, 11):  # g, graphs
            _read_graph(as_bytes(value), found, top=False, depth=depth + 1)
        elif number in (22, 23):  # sparse_tensor, sparse_tensors
            _read_sparse(as_bytes(value), found)


def _read_sparse(view: memoryview, found: _Found) -> str:
    """SparseTensorProto: values, which bear the name, and indices."""
    name = ""
    for number, value in fields(view):
        if number == 1:
            name = _read_tensor(as_bytes(value), found)
        elif number == 2:
            _read_tensor(as_bytes(value), found)
    return name


def _read_tensor(view: memoryview, found: _Found) -> str:
    """Note where the tensor's external data lies; its name."""
    name = ""
    for number, value in fields(view):
        if number == 8:
            name = as_text(value)
        elif number == 13:  # external_data, a key and a value
            entry = {inner: as_text(item) for inner, item in fields_once(as_bytes(value)).items()}
            if entry.get(1) == "location":
                found.external_files.add(entry.get(2, ""))
    return name


def _read_pair(view: memoryview) -> tuple[str, int]:
    """OperatorSetIdProto: domain, version."""
    found = fields_once(view)
    return as_text(found.get(1, memoryview(b""))), as_int(found.get(2, 0))


def _name(view: memoryview) -> str:
    """The name of a ValueInfoProto."""
    return as_text(fields_once(view, repeated=(4,)).get(1, memoryview(b"")))


def _read_value(view: memoryview, *, needs_shape: bool) -> _Value:
    """ValueInfoProto with a tensor type."""
    name = _name(view)
    kind = fields_once(as_bytes(fields_once(view, repeated=(4,)).get(2, memoryview(b""))))
    if 1 not in kind or kind.keys() & {4, 5, 7, 8, 9}:  # sequence, map, opaque, sparse, optional
        raise ArtifactError(f"tensor '{name}' of the model is not a plain tensor; infer runs only those")
    tensor = fields_once(as_bytes(kind[1]))
    code = as_int(tensor.get(1, 0))
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
        _read_dim(as_bytes(dim))
        for number, dim in fields(as_bytes(tensor.get(2, memoryview(b""))))
        if number == 1
    ]
    return _Value(name, _ELEMENT_TYPES[code], dims)


def _read_dim(view: memoryview) -> Dim | None:
    """TensorShapeProto.Dimension; None for one without a size or a name, such as "?" or -1."""
    found = fields_once(view)
    if 1 in found and 2 in found:
        raise WireError("a dim has a size and a name")
    size, label = as_int(found.get(1, -1)), as_text(found.get(2, memoryview(b"")))
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
