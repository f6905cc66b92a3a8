"""The reader of `.onnx` files, held to the onnx package."""

from __future__ import annotations

import contextlib
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

import infer
from infer.errors import ArtifactError
from infer.graphfile import GraphFile, read_graph_file
from tests.tiny import classifier, parse


def _if() -> onnx.ModelProto:
    return parse(
        "g (bool c, float[N] x) => (float[N] y) { y = If (c) <"
        " then_branch = t () => (float[N] a) { a = Neg(x) },"
        " else_branch = e () => (float[N] b) { d = Abs(x) b = Sqrt(d) } > }"
    )


def _functions() -> onnx.ModelProto:
    text = """<ir_version: 9, opset_import: ["":18, "mine":1]>
    g (float[N, 4] x) => (float[N, 4] y) { y = mine.twice(x) }
    <domain: "mine", opset_import: ["":18]>
    twice (x) => (y) { y = Add(x, x) }"""
    return onnx.parser.parse_model(text)


def _old_initializers() -> onnx.ModelProto:
    """IR version 3 lists every initializer among the inputs."""
    x, w, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 3]), ("w", [3]), ("y", ["N", 3]))
    )
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [w, x], [y], [weights])
    return helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 9)])


def _sparse() -> onnx.ModelProto:
    model = parse("g (float[3] x) => (float[3] y) { y = Add(x, s) }")
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [5.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return model


def _dims() -> onnx.ModelProto:
    """A scalar, an empty size, a size without a value or name, and every element type of numpy's."""
    kinds = [t for t in TensorProto.DataType.values() if t not in (0, 14, 15, 16) and t < 17]
    inputs = [helper.make_tensor_value_info(f"x{t}", t, [0, "N", None, 7]) for t in kinds]
    scalar = helper.make_tensor_value_info("s", TensorProto.FLOAT, [])
    nodes = [helper.make_node("Identity", ["s"], ["y"])]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "g", [scalar, *inputs], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx", 19)])


def _external() -> onnx.ModelProto:
    """Weights in files: of the graph, in a node's attribute, in a subgraph, and in a function."""
    model = _if()
    inner = model.graph.node[0].attribute[0].g
    inner.initializer.append(_elsewhere("deep", "deep.bin"))
    constant = helper.make_node("Constant", [], ["unused"], value=_elsewhere("c", "constant.bin"))
    model.graph.node.append(constant)
    sparse = helper.make_sparse_tensor(_elsewhere("v", "sparse.bin"), _elsewhere("i", "index.bin"), [9])
    model.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    model.graph.initializer.append(_elsewhere("w", "folder/w.bin"))
    function = helper.make_function("mine", "f", ["a"], ["b"], [constant], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("default", _elsewhere("f", "function.bin")))
    model.functions.append(function)
    return model


def _elsewhere(name: str, location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


MODELS = {
    "net": classifier,
    "subgraphs": _if,
    "functions": _functions,
    "initializers as inputs": _old_initializers,
    "sparse initializer": _sparse,
    "dims": _dims,
    "external data": _external,
}


def _nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(iter(graph.node))


@pytest.mark.parametrize("kind", MODELS)
def test_the_outline_is_what_the_onnx_package_reads(kind: str, tmp_path: Path) -> None:
    """Inputs, outputs, dtypes, dims, opsets and operators are those of the protobuf library."""
    model = MODELS[kind]()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    _assert_outline(read_graph_file(path), model)


def _assert_outline(outline: GraphFile, model: onnx.ModelProto) -> None:
    initial = {t.name for t in model.graph.initializer} | {
        t.values.name for t in model.graph.sparse_initializer
    }
    inputs = [v for v in model.graph.input if v.name not in initial]
    for specs, values in (
        (outline.signature.inputs, inputs),
        (outline.signature.outputs, list(model.graph.output)),
    ):
        assert [spec.name for spec in specs] == [value.name for value in values]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert spec.numpy_dtype == helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            assert len(spec.dims) == len(tensor.shape.dim)
            for ours, theirs in zip(spec.dims, tensor.shape.dim, strict=True):
                # a size below 0 is one that varies, as it is for ONNX Runtime
                sized = theirs.HasField("dim_value") and theirs.dim_value >= 0
                named = sized or theirs.dim_param.isidentifier()
                said = theirs.dim_value if sized else theirs.dim_param
                assert ours == said if named else isinstance(ours, str)
    assert outline.opsets == {o.domain: o.version for o in model.opset_import}
    bodies = [n for function in model.functions for n in function.node]
    expected = Counter(
        f"{n.domain}.{n.op_type}" if n.domain else n.op_type
        for n in _nodes(iter([*model.graph.node, *bodies]))
    )
    assert outline.operators == expected


def test_every_place_that_can_point_to_a_file_is_found(tmp_path: Path) -> None:
    """External data is found in initializers, constants, sparse tensors, subgraphs and functions."""
    path = tmp_path / "model.onnx"
    path.write_bytes(_external().SerializeToString())
    assert read_graph_file(path).external_files == {
        "deep.bin", "constant.bin", "sparse.bin", "index.bin", "folder/w.bin", "function.bin",
    }  # fmt: skip


def test_external_data_as_the_onnx_package_writes_it(tmp_path: Path) -> None:
    """The file that onnx.save puts weights into is the one that is found."""
    model = classifier()
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    assert read_graph_file(tmp_path / "model.onnx").external_files == {"weights.bin"}


def test_files_of_training_graphs_are_found(tmp_path: Path) -> None:
    """A model's training part, which a backend may skip, can name files as well."""
    model = classifier()
    training = model.training_info.add()
    training.initialization.initializer.append(_elsewhere("i", "first.bin"))
    training.algorithm.initializer.append(_elsewhere("a", "second.bin"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert read_graph_file(tmp_path / "model.onnx").external_files == {"first.bin", "second.bin"}


@pytest.mark.parametrize("label", ["?", "None", "-1", "", "a b", "2*n", "0"])
def test_placeholders_are_no_names_of_dims(label: str, tmp_path: Path) -> None:
    """Two dims that an exporter left open under one placeholder may have two sizes."""
    model = parse("g (float[N, M] x) => (float[N, M] y) { y = Abs(x) }")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = label
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    signature = read_graph_file(tmp_path / "model.onnx").signature
    assert signature.inputs[0].dims == ("x_dim0", "x_dim1")
    with infer.load(tmp_path / "model.onnx") as session:
        assert session.run({"x": -np.ones((2, 3), np.float32)})["y"].tolist() == [[1.0] * 3] * 2


def test_a_negative_size_is_none(tmp_path: Path) -> None:
    """-1 as a number is what other formats write for a size that varies."""
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Abs(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert read_graph_file(tmp_path / "model.onnx").signature.inputs[0].dims == ("x_dim0", 3)


def test_names_given_to_dims_are_not_taken(tmp_path: Path) -> None:
    """A dim of the model that bears the very name infer would give is another dim."""
    dims = {"x": [None, "x_dim0"], "y": ["x_dim0", None]}
    x, y, z = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims.get(name, [None, None]))
        for name in "xyz"
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "y"], ["z"])], "g", [x, y], [z])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    signature = read_graph_file(tmp_path / "model.onnx").signature
    assert [spec.dims for spec in signature.inputs] == [("x_dim0_", "x_dim0"), ("x_dim0", "y_dim1")]


class _Disguise:
    """Writes a message as no library does: what the wire format allows, and what parsers disagree about."""

    def __init__(self, seed: int, rate: float) -> None:
        self._rng = random.Random(seed)
        self._rate = rate

    def message(self, message: Any) -> bytes:
        out = b""
        for descriptor, value in message.ListFields():
            repeated = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            for item in value if repeated else [value]:
                out += self._odd(self._field(descriptor, item), descriptor.number)
        return out

    def _field(self, descriptor: Any, item: Any) -> bytes:
        if descriptor.message_type is not None:
            return self._bytes(descriptor.number, self.message(item))
        if isinstance(item, (str, bytes)):
            return self._bytes(descriptor.number, item.encode() if isinstance(item, str) else item)
        if isinstance(item, float):
            return self._tag(descriptor.number, 5) + struct.pack("<f", item)
        return self._tag(descriptor.number, 0) + self._number(item % 2**64, 12)

    def _bytes(self, number: int, content: bytes) -> bytes:
        return self._tag(number, 2) + self._number(len(content), 7) + content

    def _tag(self, number: int, kind: int) -> bytes:
        return self._number(number << 3 | kind, 7)

    def _number(self, value: int, longest: int) -> bytes:
        """A varint, at times padded with zeros, or with a bit above those that count."""
        raw = bytearray(_varint(value))
        if self._rng.random() < self._rate:
            raw[-1] |= 0x80
            raw += b"\x80" * self._rng.randrange(max(1, longest - len(raw)))
            raw.append(self._rng.choice([0, 0, 0, 1, 0x10, 0x20]))
        return bytes(raw)

    def _odd(self, field: bytes, number: int) -> bytes:
        """The field, at times beside another one."""
        if self._rng.random() >= self._rate:
            return field
        number = self._rng.choice([number, number, self._rng.randrange(1, 30), 1000, 2**29 - 1])
        text = self._rng.choice([b"", b"x", b"\x08\x01", b"\x0a\x01w", b"location"])
        beside = self._rng.choice(
            [
                field,
                self._bytes(number, text),
                self._tag(number, 0) + b"\x05",
                self._tag(number, 1) + b"12345678",
                self._tag(number, 5) + b"1234",
                self._tag(number, 3) + self._tag(number, 4),
            ]
        )
        return self._rng.choice([field + beside, beside + field])


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 2**32), rate=st.sampled_from([0.01, 0.05]))
def test_whatever_is_accepted_is_read_as_protobuf_reads_it(
    kind: str, seed: int, rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Overlong numbers, fields twice, unknown, of another type or in groups: refused, or read alike.

    There are two oracles, which differ: the parser of protobuf's Python package, and that of C++, which the
    onnx package has for `infer_shapes` and ONNX Runtime for itself. What one cannot parse, it does not run.
    """
    raw = _Disguise(seed, rate).message(MODELS[kind]())
    path = tmp_path_factory.getbasetemp() / "disguised.onnx"
    path.write_bytes(raw)
    try:
        outline = read_graph_file(path)
    except ArtifactError:
        return
    with contextlib.suppress(DecodeError):
        model = onnx.ModelProto.FromString(raw)
        _assert_outline(outline, model)
        assert outline.external_files >= set(_locations(model))
    with contextlib.suppress(ValueError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        assert outline.external_files >= set(_locations(onnx.shape_inference.infer_shapes(raw)))


def _locations(message: Any) -> Iterator[str]:
    """Every file that a tensor below `message` points to."""
    if isinstance(message, onnx.TensorProto):
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            repeated = isinstance(value, Sequence)
            for item in value if repeated else [value]:
                yield from _locations(item)


@pytest.mark.parametrize("kind", MODELS)
def test_a_disguise_that_changes_nothing_is_read(kind: str, tmp_path: Path) -> None:
    """Without odd bytes the writer above writes what the library writes, and it is accepted."""
    raw = _Disguise(0, 0.0).message(MODELS[kind]())
    (tmp_path / "model.onnx").write_bytes(raw)
    _assert_outline(read_graph_file(tmp_path / "model.onnx"), onnx.ModelProto.FromString(raw))


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A 256 MiB sparse file is outlined without touching its weights: page faults stay few."""
    import resource

    model = parse("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2**26])
    tensor.raw_data = b"\0" * 8
    raw = model.SerializeToString()
    head = model.graph.initializer[0].SerializeToString()
    start = raw.index(head)
    payload = 2**28
    grown_tensor = head[: head.index(b"\0" * 8) - 1] + _varint(payload)
    graph = model.graph.SerializeToString()
    begin = graph.index(head)
    grown = (
        graph[: begin - 1 - len(_varint(len(head)))]
        + b"\x2a"
        + _varint(len(grown_tensor) + payload)
        + grown_tensor
    )
    rest = graph[begin + len(head) :]
    model.graph.Clear()
    prefix = model.SerializeToString().replace(b"\x3a\x00", b"")
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(prefix + b"\x3a" + _varint(len(grown) + payload + len(rest)) + grown)
        file.seek(payload, 1)
        file.write(rest)
    assert start > 0
    before = resource.getrusage(resource.RUSAGE_SELF)
    outline = read_graph_file(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert [spec.name for spec in outline.signature.inputs] == ["x"]
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < 2**28 / 4096 / 100


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "not an ONNX model"),
        (b"\x08\x08", "it has no graph"),
        (b"\x3a\x00", "it imports no opset"),
        (b"\x3a\x05abc", "cut short"),
        (b"\x80" * 11 + b"\x01", "more than 5 bytes"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x88\x80\x80\x80\x10\x08", "field number 536870913"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x00\x00", "field number 0"),
    ],
)
def test_what_is_not_a_model_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    """The error names the file and says what is wrong with it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words) as caught:
        read_graph_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """Neither is a model."""
    with pytest.raises(ArtifactError, match="there is no file"):
        read_graph_file(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="is not a file"):
        read_graph_file(tmp_path)


def test_an_input_without_a_rank_is_refused(tmp_path: Path) -> None:
    """A graph that leaves the rank of an input open cannot be guarded, and it is not taken for a scalar."""
    model = classifier()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="'x' of the model declares no shape"):
        read_graph_file(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: setattr(t.tensor_type, "elem_type", TensorProto.BFLOAT16), "element type 16"),
        (lambda t: t.sequence_type.elem_type.tensor_type.SetInParent(), "not a plain tensor"),
    ],
)
def test_types_that_numpy_cannot_feed_are_refused(edit: object, words: str, tmp_path: Path) -> None:
    """bfloat16 and sequences end in an error that names the tensor."""
    model = classifier()
    assert callable(edit)
    edit(model.graph.input[0].type)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=f"'x'.*{words}"):
        read_graph_file(tmp_path / "m.onnx")
