"""The work of a query is what the architecture says, and limits follow from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import converters
from infer.errors import FeedError
from infer.feeds import Feeds
from infer.machine import this_machine
from infer.measure.operations import operations
from infer.measure.record import Peaks
from infer.measure.work import Work, count_work, limit_of, operations_by_node
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact
from tests.tiny import parse


def work_of(path: Path, feeds: Feeds) -> Work:
    artifact = open_artifact(path)
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions(device="cpu", num_threads=1))
    return count_work(artifact, plan, feeds)


def work_of_text(
    folder: Path, text: str, feeds: Feeds, weights: dict[str, tuple[int, ...]], opset: int = 17
) -> Work:
    model = parse(text, opset=opset, ir_version=10)
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, folder / "model.onnx")
    return work_of(folder / "model.onnx", feeds)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_perceptron_takes_two_operations_for_each_weight_and_row(net: Path, batch: int) -> None:
    """10-5-2: two products, and one operation for each activation; weights, feeds and outputs are moved."""
    work = work_of(net, {"x": floats(batch, 10)})
    assert work.flops == 2 * batch * (10 * 5 + 5 * 2) + batch * 5
    weights = 10 * 5 + 5 + 5 * 2 + 2
    assert work.moved_bytes == 4 * (weights + batch * 10 + batch * 2)
    assert work.uncounted == ()


def test_groups_and_strides_of_a_convolution_divide_its_work(tmp_path: Path) -> None:
    """Each output is a sum over the kernel and the channels of its group."""
    net = nn.Sequential(
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), nn.ConvTranspose2d(12, 6, 2, stride=2, groups=3)
    )
    converters.convert(net.eval(), tmp_path / "net.infer", example_inputs=(torch.randn(2, 8, 10, 14),))
    work = work_of(tmp_path / "net.infer", {"input": floats(3, 8, 10, 14)})
    forward = 2 * 3 * 12 * (5 * 7) * (8 // 4) * 9
    back = 2 * 3 * 12 * (5 * 7) * (6 // 3) * 4
    assert work.flops == forward + back


def test_operations_are_told_by_node(tmp_path: Path) -> None:
    """By name, two for each product; what has none is there with 0."""
    text = """g (float[N, 6] x) => (float[N, 5] y) {
        [first] a = MatMul(x, w) [turn] b = Reshape(a, s) [second] y = Gemm(b, v, c)
    }"""
    proto = parse(text, opset=17, ir_version=8)
    weights = {"w": floats(6, 4), "v": floats(4, 5), "c": floats(5), "s": np.array([-1, 4])}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    artifact = open_artifact(tmp_path / "m.onnx")
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions(device="cpu"))
    found = operations_by_node(artifact, plan, {"x": floats(3, 6)})
    assert found == {"first": 2 * 3 * 6 * 4, "turn": 0, "second": 2 * 3 * 4 * 5}


def test_an_lstm_meets_all_weights_in_every_step(tmp_path: Path) -> None:
    """Two layers, the first of which reads in both directions: 4 gates of input and hidden."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
            self.second = nn.GRU(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)[0])[0]

    converters.convert(Net().eval(), tmp_path / "net.infer", example_inputs={"x": torch.randn(2, 7, 6)})
    work = work_of(tmp_path / "net.infer", {"x": floats(3, 7, 6)})
    steps = 3 * 7
    products = 2 * steps * (2 * 4 * 8 * (6 + 8)) + 2 * steps * (3 * 4 * (16 + 4))
    assert products <= work.flops <= products + 8  # the sizes of the first state are computed


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 40)])
def test_an_encoder_takes_what_its_architecture_says(
    tmp_path_factory: pytest.TempPathFactory, batch: int, length: int
) -> None:
    """BERT: 12·h² weights in each layer with 4·h wide feed-forward, and 4·s·h operations of attention for
    each token; pooler and head once a row. Others are within 2 % of that."""
    import transformers

    hidden, layers, wide = 128, 2, 512
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=wide, max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh ones are equal, and equal weights are kept once
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "bert")
    converters.convert(folder / "bert", folder / "bert.infer")
    ids = np.ones((batch, length), np.int64)
    work = work_of(
        folder / "bert.infer",
        {"input_ids": ids, "attention_mask": ids, "token_type_ids": np.zeros_like(ids)},
    )
    tokens = batch * length
    encoder = layers * (2 * tokens * 12 * hidden**2 + 4 * tokens * length * hidden)
    products = encoder + batch * 2 * (hidden**2 + 2 * hidden)
    assert products <= work.flops <= 1.02 * products
    assert work.uncounted == ()
    # of the table of words, only the rows that are looked up
    layer = 12 * hidden**2 + 4 * hidden + wide + hidden + 4 * hidden
    weights = layers * layer + hidden**2 + hidden + 2 * hidden + 2 + 2 * hidden
    rows = min(1000, tokens) + min(2, tokens) + length
    moved = 4 * (weights + rows * hidden) + 3 * 8 * tokens + 4 * 2 * batch
    assert moved <= work.moved_bytes <= 1.02 * moved


@pytest.mark.slow
@pytest.mark.filterwarnings("default::FutureWarning")  # of the exporter itself
def test_resnet_50_takes_its_well_known_four_billion_products(tmp_path: Path) -> None:
    """4.09 GMAC at 224 × 224 (He et al. 2016 with the stride in the 3 × 3), 25.6 M parameters."""
    from bench.zoo import resnet50

    model, inputs = resnet50.build()
    torch.onnx.export(model.eval(), kwargs=inputs, f=tmp_path / "net.onnx", dynamo=True, verbose=False)
    batch = len(inputs["pixel_values"])
    work = work_of(tmp_path / "net.onnx", {"pixel_values": floats(batch, 3, 224, 224)})
    assert work.flops / 2 / batch == pytest.approx(4.09e9, rel=0.02)
    assert work.moved_bytes == pytest.approx(4 * (25.557e6 + batch * (3 * 224**2 + 1000)), rel=0.01)


def test_both_attentions_are_two_products(tmp_path: Path) -> None:
    """Of 4-dim and of 3-dim queries, of which the keys may be fewer than the queries' heads."""
    four = work_of_text(
        tmp_path,
        "g (float[2,4,3,8] q, float[2,2,5,8] k, float[2,2,5,8] v) => (float[a,b,c,d] y) {"
        " y = Attention(q, k, v) }",
        {"q": floats(2, 4, 3, 8), "k": floats(2, 2, 5, 8), "v": floats(2, 2, 5, 8)},
        {},
        23,
    )
    assert four.flops == 2 * 2 * (2 * 4 * 3 * 5 * 8)
    three = work_of_text(
        tmp_path,
        "g (float[2,3,32] q, float[2,5,16] k, float[2,5,16] v) => (float[a,b,c] y) {"
        " y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) }",
        {"q": floats(2, 3, 32), "k": floats(2, 5, 16), "v": floats(2, 5, 16)},
        {},
        23,
    )
    assert three.flops == four.flops
    past = work_of_text(
        tmp_path,
        "g (float[2,4,1,8] q, float[2,4,1,8] k, float[2,4,1,8] v, float[2,4,6,8] pk, float[2,4,6,8] pv)"
        " => (float[a,b,c,d] y, float[e,f,g,h] nk, float[i,j,k,l] nv) {"
        " y, nk, nv = Attention(q, k, v, , pk, pv) }",
        {n: floats(2, 4, 1, 8) for n in "qkv"} | {n: floats(2, 4, 6, 8) for n in ("pk", "pv")},
        {},
        23,
    )
    assert past.flops == 2 * 2 * (2 * 4 * 1 * 7 * 8)


def test_products_of_other_domains_and_types_count(tmp_path: Path) -> None:
    """ONNX Runtime's fused operators, and integers."""
    assert operations("FusedMatMul", [(2, 5, 3), (2, 5, 4)], [(2, 3, 4)]) == 2 * 2 * 3 * 5 * 4
    assert operations("Gemm", [(5, 3), (4, 5), (4,)], [(3, 4)]) == 2 * 3 * 5 * 4
    assert operations("MatMul", [(7,), (7,)], [()]) == 2 * 7
    # weights and bias first: three projections, then attention
    attention = operations("Attention", [(2, 6, 16), (16, 48), (48,)], [(2, 6, 16)])
    assert attention == 2 * 2 * 6 * 16 * 48 + 2 * 2 * (2 * 6 * 6 * 16)
    assert (
        operations("MultiHeadAttention", [(2, 3, 16), (2, 5, 16), (2, 5, 16)], [(2, 3, 16)])
        == 2 * 2 * 2 * 3 * 5 * 16
    )
    assert (
        operations("QLinearConv", [(1, 4, 9, 9), (), (), (8, 4, 3, 3)], [(1, 8, 7, 7)])
        == 2 * 8 * 49 * 4 * 9
    )
    integers = work_of_text(
        tmp_path, "g (uint8[2, 6] x, uint8[6, 4] w) => (int32[2, 4] y) { y = MatMulInteger(x, w) }",
        {"x": np.ones((2, 6), np.uint8), "w": np.ones((6, 4), np.uint8)}, {},
    )  # fmt: skip
    assert integers.flops == 2 * 2 * 6 * 4


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 8), (2, 3, 5, 8)], 2 * 2 * 3 * 4 * 5 * 8),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 2 * 2 * 3 * 4 + 2 * 2 * 4 * 5),
        ("...ij,...jk->...ik", [(7, 2, 3), (7, 3, 4)], 2 * 7 * 2 * 3 * 4),
        ("i,j->ij", [(3,), (4,)], 3 * 4),
        ("ij->ji", [(3, 4)], 0),
        ("ij->i", [(3, 4)], 3 * 4),
        ("ij,jk", [(2, 3), (3, 4)], 2 * 2 * 3 * 4),
    ],
)
def test_einsum_is_counted_as_a_contraction(
    tmp_path: Path, equation: str, shapes: list[tuple[int, ...]], expected: int
) -> None:
    """A product and a sum for each place of all labels."""
    names = [f"x{i}" for i in range(len(shapes))]
    inputs = ", ".join(f"float{list(shape)} {name}" for name, shape in zip(names, shapes, strict=True))
    rank = np.einsum(equation, *(floats(*shape) for shape in shapes)).ndim
    dims = ", ".join("abcdefg"[:rank])
    text = (
        f'g ({inputs}) => (float[{dims}] y) {{ y = Einsum<equation = "{equation}">({", ".join(names)}) }}'
    )
    feeds = {name: floats(*shape) for name, shape in zip(names, shapes, strict=True)}
    assert work_of_text(tmp_path, text, feeds, {}).flops == expected


def test_work_on_weights_alone_is_none_of_a_query(tmp_path: Path) -> None:
    """It is done when the graph is loaded; what it is made of is read once, however often it is used."""
    work = work_of_text(
        tmp_path,
        "g (float[n, 4] x) => (float[n, 4] y) {"
        " a = Transpose(w) b = Mul(a, a) h = MatMul(x, b) c = Transpose(w) y = MatMul(h, c) }",
        {"x": floats(3, 4)},
        {"w": (4, 4)},
    )
    assert work.flops == 2 * (2 * 3 * 4 * 4)
    assert work.moved_bytes == 4 * (16 + 12 + 12)


def test_a_loop_counts_every_turn_and_a_branch_only_if_taken(tmp_path: Path) -> None:
    """Nodes without a name in graphs inside nodes, too; the weights of the other branch are not read."""
    loop = work_of_text(
        tmp_path,
        "g (float[2, 4] x, int64 n, bool go) => (float[a, b] y) {"
        " y = Loop <body = body (int64 i, bool c, float[2, 4] h) => (bool c2, float[2, 4] h2) {"
        " c2 = Identity(c) h2 = MatMul(h, w) }> (n, go, x) }",
        {"x": floats(2, 4), "n": np.array(5), "go": np.array(True)},
        {"w": (4, 4)},
    )
    assert loop.flops == 5 * (2 * 2 * 4 * 4)
    assert loop.moved_bytes == 4 * (16 + 8 + 8) + 8 + 1
    branch = work_of_text(
        tmp_path,
        "g (float[2, 4] x, bool c) => (float[a, b] y) {"
        " y = If <then_branch = t () => (float[2, 8] p) { p = MatMul(x, wide) },"
        " else_branch = e () => (float[2, 1] q) { q = MatMul(x, thin) }> (c) }",
        {"x": floats(2, 4), "c": np.array(False)},
        {"wide": (4, 8), "thin": (4, 1)},
    )
    assert branch.flops == 2 * 2 * 4 * 1
    assert branch.moved_bytes == 4 * (4 + 8 + 2) + 1


def test_functions_of_a_model_count_as_what_is_in_them(tmp_path: Path) -> None:
    """ONNX Runtime takes them apart; their weights are read."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["":17, "own":1]>'
        " g (float[n, 4] x) => (float[n, 3] y) { y = own.twice(x, w) }"
        ' <domain: "own", opset_import: ["":17]> twice (a, b) => (z) { p = MatMul(a, b) z = Add(p, p) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(floats(4, 3), "w"))
    onnx.save(model, tmp_path / "model.onnx")
    work = work_of(tmp_path / "model.onnx", {"x": floats(2, 4)})
    assert work.flops == 2 * 2 * 4 * 3 + 2 * 3
    assert work.moved_bytes == 4 * (12 + 8 + 6)


def test_constants_take_no_place_among_nodes_without_a_name(tmp_path: Path) -> None:
    """The place is part of what ONNX Runtime calls such a node: it says which of its inputs are given."""
    work = work_of_text(
        tmp_path,
        "g (float[n, 4] x) => (float[n, 3] y) {"
        " w = Constant<value = float[4, 3] {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>()"
        " s = MatMul(x, w) low = Constant<value = float {2}>() y = Clip(s, , low) }",
        {"x": floats(2, 4)},
        {},
    )
    assert work.flops == 2 * 2 * 4 * 3 + 2 * 3
    assert work.moved_bytes == 4 * (12 + 1 + 8 + 6)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    """How much work a non-maximum suppression is depends on the boxes."""
    work = work_of_text(
        tmp_path,
        "g (float[1, 3, 4] b, float[1, 1, 3] s) => (int64[k, 3] y) {"
        " t = Mul(s, s) y = NonMaxSuppression(b, t) }",
        {"b": floats(1, 3, 4), "s": floats(1, 1, 3)},
        {},
    )
    assert work.uncounted == ("NonMaxSuppression",)
    assert work.flops == 3


def test_feeds_that_do_not_fit_are_refused(net: Path) -> None:
    """By the same guard that a session has."""
    with pytest.raises(FeedError, match="x"):
        work_of(net, {"x": floats(1, 9)})


def test_the_larger_floor_is_the_limit() -> None:
    """2 GFLOP at 100 GFLOP/s take 20 ms, 100 MB at 10 GB/s take 10 ms."""
    peaks = Peaks(threads=2, gflops=100.0, gigabytes_per_s=10.0, cache_bytes=10**6)
    compute = limit_of(Work(2e9, 10**8, ()), peaks, 40.0)
    assert (compute.bound, compute.floor_ms, compute.fraction) == ("compute", 20.0, 0.5)
    assert (compute.gflop, compute.megabytes) == (2.0, 100.0)
    memory = limit_of(Work(1e8, 10**8, ("NonMaxSuppression",)), peaks, 40.0)
    assert (memory.bound, memory.floor_ms, memory.fraction) == ("memory", 10.0, 0.25)
    assert memory.uncounted == ("NonMaxSuppression",)


def test_bytes_that_stay_in_the_cache_are_no_floor() -> None:
    """The last cache holds all of them; with an unknown one they come from memory."""
    work = Work(1e3, 10**6, ())
    cached = limit_of(work, Peaks(2, 100.0, 10.0, 10**6), 1.0)
    assert (cached.bound, cached.floor_ms) == ("compute", pytest.approx(1e-5))
    assert limit_of(work, Peaks(2, 100.0, 10.0, 0), 1.0).bound == "memory"


def test_a_fraction_above_one_is_shown() -> None:
    """It says that a peak or a count is wrong, and must not be hidden."""
    assert limit_of(Work(2e9, 10**8, ()), Peaks(2, 100.0, 10.0, 0), 10.0).fraction == 2.0
