"""The reader of `.onnx` files, held to the onnx package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from infer.errors import ArtifactError
from infer.graphfile import read_graph_file
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
    outline = read_graph_file(path)

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
                named = theirs.WhichOneof("value")
                assert ours == getattr(theirs, named) if named else isinstance(ours, str)
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
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "cut short"),
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
