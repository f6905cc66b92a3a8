"""Hostile `.onnx` files: damage, endless nesting, disguise."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import infer
from infer.errors import ArtifactError, InferError
from infer.graphfile import GraphFile, read_graph_file
from infer.graphnodes import GraphNodes, read_graph_nodes
from tests.tiny import classifier, parse, reseal, write


def _branches() -> onnx.ModelProto:
    return parse(
        "g (bool c, float[N] x) => (float[N] y) { y = If (c) <"
        " then_branch = t () => (float[N] a) { a = Neg(x) },"
        " else_branch = e () => (float[N] b) { b = Abs(x) } > }"
    )


def _strings() -> onnx.ModelProto:
    return parse("g (string[N] s, int64[1] i) => (string[M] y) { y = Gather(s, i) }")


MODELS: tuple[Callable[[], onnx.ModelProto], ...] = (classifier, _branches, _strings)
MUTATIONS = 500


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, replaced, cut out, doubled or made huge lengths: what damages wire formats."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2 and len(data) > 8:
            del data[place : place + rng.randrange(1, 8)]
        elif kind == 3:
            data[place:place] = data[place : place + rng.randrange(1, 40)]
        elif kind == 4:
            data[place : place + 1] = b"\xff" * 9 + b"\x01"
        else:
            data = data[: max(1, place)]
    return bytes(data)


@pytest.mark.parametrize("make", MODELS)
def test_damaged_graphs_give_a_typed_error_or_an_outline(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    """500 seeded mutations: each is read or is an `ArtifactError`, in milliseconds."""
    raw, path = make().SerializeToString(), tmp_path / "m.onnx"
    rng = random.Random(0)
    read = refused = 0
    slowest_s = 0.0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(raw, rng))
        start = time.perf_counter()
        try:
            assert isinstance(read_graph_file(path), GraphFile)
            read += 1
            with contextlib.suppress(ArtifactError):  # it looks at more
                assert isinstance(read_graph_nodes(path), GraphNodes)
        except ArtifactError:
            refused += 1
        slowest_s = max(slowest_s, time.perf_counter() - start)
    assert read + refused == MUTATIONS
    assert read > 10  # so that the mutations are not all of one kind
    assert refused > 100
    assert slowest_s < 1.0


def test_damaged_graphs_do_not_crash_the_loader(tmp_path: Path) -> None:
    """100 of them given to `infer.load`: a session or an `InferError`; the process lives."""
    raw, path = classifier().SerializeToString(), tmp_path / "m.onnx"
    rng = random.Random(1)
    for _ in range(100):
        path.write_bytes(mutate(raw, rng))
        with contextlib.suppress(InferError):
            infer.load(path, num_threads=1).close()


def _nested(depth: int) -> onnx.ModelProto:
    model = _branches()
    for _ in range(depth):
        inner = onnx.GraphProto()
        inner.CopyFrom(model.graph)
        inner.ClearField("input")
        del model.graph.node[:]
        node = model.graph.node.add(op_type="If", input=["c"], output=["y"])
        for branch in ("then_branch", "else_branch"):
            node.attribute.append(onnx.helper.make_attribute(branch, onnx.GraphProto(name="empty")))
        node.attribute[0].g.CopyFrom(inner)
    return model


def test_nesting_of_graphs_is_bounded(tmp_path: Path) -> None:
    """Graphs within graphs are read to a depth no model has, and refused beyond."""
    path = tmp_path / "m.onnx"
    path.write_bytes(_nested(10).SerializeToString())
    assert read_graph_file(path).operators["If"] == 11
    path.write_bytes(_wrap(3000))
    for read in (read_graph_file, read_graph_nodes):
        with pytest.raises(ArtifactError, match="nested more than 32 deep"):
            read(path)


def test_a_weight_of_a_million_dims_is_refused(tmp_path: Path) -> None:
    """Their product would be a number of megabytes."""
    model = classifier()
    model.graph.initializer[0].dims.extend([2**62] * 10**6)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="1000002 dims"):
        read_graph_nodes(tmp_path / "m.onnx")


def _wrap(depth: int) -> bytes:
    """Wire format of a model whose graph holds a node with a graph with a node, and so on."""
    message = b"\x12\x00"  # GraphProto.name
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            message = bytes([tag]) + _length(message) + message
    return b"\x3a" + _length(message) + message + b"\x42\x02\x10\x11"


def _length(message: bytes) -> bytes:
    value, out = len(message), bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_graph_is_read_as_onnx_whatever_it_is_called(artifact: Path) -> None:
    """A graph named .ort does not reach ONNX Runtime's other format, which infer did not look at."""
    from tests.tiny import edit_manifest

    (artifact / "graphs/net.onnx").rename(artifact / "graphs/net.ort")
    reseal(artifact)
    edit_manifest(artifact, lambda data: data["variants"][0].update(graph="graphs/net.ort"))
    infer.load(artifact).close()


def test_unknown_operators_and_domains_are_an_error(tmp_path: Path) -> None:
    """No library is looked for: a custom operator is refused by the backend."""
    model = parse("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    model.graph.node[0].domain = "evil.custom"
    model.opset_import.add(domain="evil.custom", version=1)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(infer.BackendError, match="cannot load"):
        infer.load(tmp_path / "m.onnx")


def test_the_models_are_sound(tmp_path: Path) -> None:
    """Unmutated, each is read and loads."""
    for i, make in enumerate(MODELS):
        path = tmp_path / f"{i}.onnx"
        path.write_bytes(make().SerializeToString())
        onnx.checker.check_model(str(path))
        infer.load(path).close()
    assert read_graph_file(write(tmp_path, "g (float[2] x) => (float[2] y) { y = Abs(x) }")).opset == 17
