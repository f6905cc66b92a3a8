"""Passes of the optimizer: before and after, refusals with their reasons, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.bare_graph import artifact_of_graph
from infer.graphwriting import save
from infer.optimizer.passes.attention import attention, guarded_attention
from infer.optimizer.passes.group_norm import group_norm
from infer.optimizer.passes.skip_norm import skip_norm
from infer.optimizer.passes.turned_keys import turned_keys
from infer.optimizer.rewriting import constant, put, weight
from infer.options import PlanOptions, SessionOptions
from infer.session import open_session
from infer.signature import Array
from tests.tiny import parse


def operators(model: ir.Model) -> list[str]:
    """Of all nodes that compute something."""
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def answers(model: ir.Model, path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime makes of the model as it is written, without its own optimizations."""
    save(model, path)
    options = PlanOptions(device="cpu", num_threads=1, graph_optimization="none")
    with open_session(artifact_of_graph(path), options, SessionOptions(warm_up=False)) as session:
        return session.run(feeds)


def loaded(proto: onnx.ModelProto) -> ir.Model:
    onnx.checker.check_model(proto)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def attending(
    *,
    heads: int = 2,
    size: int = 4,
    key_heads: int | None = None,
    mask: str | None = "bool",
    causal: bool = False,
    shared: bool = True,
    bias: bool = True,
    split: bool = True,
    spelling: str = "whole",
    positions: bool = False,
    keys: str = "S",
) -> ir.Model:
    """Attention as torch's exporters write it: `x` [B, S, W] to `y`, with seeded weights; unless `shared`,
    keys are of `other`, [B, `keys`, W].

    `spelling` is "whole" (opset 23), "dynamo" (its decomposition below that), "script" (TorchScript),
    "plain" (as people write it) or "replaced" (where scores are replaced, not added to); in the last three,
    `positions` are added, too.
    """
    width = heads * size
    kinds = {
        "bool": f"bool[B, 1, S, {keys}]",
        "float": f"float[B, 1, S, {keys}]",
        "row": f"bool[B, 1, 1, {keys}]",
        "numbers row": f"float[B, 1, 1, {keys}]",
        "plane": f"float[S, {keys}]",
    }
    inputs = f"float[B, S, {width}] x"
    if not shared:
        inputs += f", float[B, {keys}, {width}] other"
    if mask:
        inputs += f", {kinds[mask]} mask"
    if positions:
        inputs += f", float[1, {heads}, S, {keys}] positions"
    lines = []
    for name in "qkv":
        count = (key_heads or heads) if name in "kv" else heads
        source = "x" if shared or name == "q" else "other"
        lines.append(f"{name}m = MatMul({source}, {name}w)")
        lines.append(f"{name}a = Add({name}m, {name}b)" if bias else f"{name}a = Identity({name}m)")
        shape = f"{name}s"
        lines.append(f"{shape} = Constant<value = int64[4] {{0, 0, {count}, {size}}}>()")
        lines.append(f"{name}r = Reshape({name}a, {shape})")
        lines.append(f"{name} = Transpose<perm = [0, 2, 1, 3]>({name}r)")
    masked = ", mask" if mask else ""
    if spelling == "whole":
        lines.append(f"h = Attention<is_causal = {int(causal)}, scale = 0.3>(q, k, v{masked})")
    else:
        lines += _spelled(spelling, mask, size, positions)
    if split:
        lines.append("back = Transpose<perm = [0, 2, 1, 3]>(h)")
        lines.append(f"joined = Constant<value = int64[3] {{0, 0, {width}}}>()")
        lines.append("y = Reshape(back, joined)")
        output = f"float[B, S, {width}] y"
    else:
        lines.append("y = Relu(h)")
        output = f"float[B, {heads}, S, {size}] y"
    model = parse(f"g ({inputs}) => ({output}) {{ {' '.join(lines)} }}", opset=23, ir_version=11)
    rng = np.random.default_rng(3)
    for name in "qkv":
        count = (key_heads or heads) if name in "kv" else heads
        for part, shape in (("w", (width, count * size)), ("b", (count * size,))):
            if part == "w" or bias:
                array = rng.standard_normal(shape).astype(np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}{part}"))
    return loaded(model)


def _spelled(spelling: str, mask: str | None, size: int, positions: bool) -> list[str]:
    """Scores, softmax and sum, node by node; 0.3 is the scale."""
    root = 0.3**0.5
    lines = [f"root = Constant<value = float {{{root!r}}}>()", "scale = Constant<value = float {0.3}>()"]
    lines.append("zero = Constant<value = float {0.0}>()")
    if spelling == "dynamo":
        lines += [
            f"flat = Constant<value = int64[3] {{-1, 0, {size}}}>()",
            "dims = Shape(k)", "first = Constant<value = int64[1] {0}>()",
            "second = Constant<value = int64[1] {2}>()", "third = Constant<value = int64[1] {3}>()",
            "last = Constant<value = int64[1] {4}>()", "outer = Slice(dims, first, second)",
            "rows = Slice(dims, second, third)", "wide = Slice(dims, third, last)",
            "minus = Constant<value = int64[1] {-1}>()", "flat2 = Concat<axis = 0>(minus, rows, wide)",
            "k3 = Reshape(k, flat2)", "kt3 = Transpose<perm = [0, 2, 1]>(k3)",
            "dims2 = Concat<axis = 0>(outer, wide, rows)", "kt = Reshape(kt3, dims2)",
            "scaled_q = Mul(q, root)", "scaled_k = Mul(kt, root)", "scores = MatMul(scaled_q, scaled_k)",
        ]  # fmt: skip
    elif spelling == "script":
        lines += [
            "kt = Transpose<perm = [0, 2, 3, 1]>(kr)",
            "scaled_q = Mul(q, root)",
            "scaled_k = Mul(kt, root)",
            "scores = MatMul(scaled_q, scaled_k)",
        ]
    else:
        lines += [
            "kt = Transpose<perm = [0, 1, 3, 2]>(k)",
            "raw = MatMul(q, kt)",
            "scores = Mul(raw, scale)",
        ]
    if positions:
        lines[-1] = lines[-1].replace("scores =", "bare =")
        lines.append("scores = Add(positions, bare)")
    if mask in ("bool", "row") and spelling == "replaced":
        lines += ["never = Constant<value = float {-3.4e38}>()", "forbidden = Not(mask)"]
        lines.append("masked = Where(forbidden, never, scores)")
    elif mask in ("bool", "row"):
        lines.append("never = Constant<value = float {-inf}>()" if spelling == "dynamo" else
                     "never = Constant<value = float {-1e9}>()")  # fmt: skip
        lines += ["bias = Where(mask, zero, never)", "masked = Add(scores, bias)"]
    elif mask:
        lines.append("masked = Add(mask, scores)")
    lines.append(f"shares = Softmax<axis = -1>({'masked' if mask else 'scores'})")
    if spelling == "dynamo":
        lines += ["odd = IsNaN(shares)", "sane = Where(odd, zero, shares)", "h = MatMul(sane, v)"]
    else:
        lines.append("h = MatMul(shares, v)")
    return lines


def feeds_of(
    model: ir.Model, batch: int, rows: int, seed: int = 0, keys: int | None = None
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        sizes = {"B": batch, "S": rows, "T": keys or rows}
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
        if value.name == "mask":
            # one place of each row is free: sums near -1e4 have three digits left for the scores
            allowed = rng.random(shape) < 0.7
            allowed[..., 0] = True
            bools = value.dtype == ir.DataType.BOOL
            found[value.name] = allowed if bools else np.where(allowed, 0, -1e4).astype(np.float32)
        else:
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def same(
    before: ir.Model,
    after: ir.Model,
    folder: Path,
    batch: int = 2,
    rows: int = 5,
    keys: int | None = None,
) -> None:
    feeds = feeds_of(before, batch, rows, keys=keys)
    expected = answers(before, folder / "before.onnx", feeds)
    found = answers(after, folder / "after.onnx", feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6 * np.abs(array).max())


def test_self_attention_becomes_one_product_and_one_kernel(tmp_path: Path) -> None:
    """Three products with their biases, splits, transposes and the way back are two nodes, the mask's
    conversion among them, that answer the same."""
    before, after = attending(), attending()
    result = attention(after)
    assert (result.found, result.rewritten, dict(result.declined)) == (1, 1, {})
    assert operators(after) == ["Where", "Attention"]
    kernel = after.graph[1]
    assert kernel.domain == "com.microsoft"
    assert kernel.inputs[1] is not None
    assert kernel.inputs[1].const_value is not None
    assert kernel.inputs[1].const_value.shape == (8, 24)
    same(before, after, tmp_path)


@pytest.mark.parametrize("forbidden", [0, 1])
@pytest.mark.parametrize("spread", [False, True])
def test_a_mask_that_forbids_nothing_is_left_out(spread: bool, forbidden: int, tmp_path: Path) -> None:
    """As exports of vision transformers have it, spread to the batch; one that forbids a key stays."""
    before, after, other = (with_constant_mask(spread, forbidden) for _ in range(3))
    assert attention(after).rewritten == 1
    assert turned_keys(other).rewritten == 1 - forbidden
    assert ("Where" in operators(after)) == bool(forbidden)
    for model in (after, other):
        same(before, model, tmp_path)


def with_constant_mask(spread: bool, forbidden: int) -> ir.Model:
    """Of five rows, the first of which may not see so many keys, or all of them if one is spread."""
    model = attending()
    allowed = np.ones((1, 1, 1 if spread else 5, 5), np.bool_)
    allowed[0, 0, 0, :forbidden] = False
    mask = weight(model.graph, "allowed", allowed)
    node = next(node for node in model.graph if node.op_type == "Attention")
    if spread:
        dims = ir.node("Shape", [model.graph.inputs[1]])
        expand = ir.node("Expand", [mask, dims.outputs[0]])
        put(node, [dims, expand])
        mask = expand.outputs[0]
        mask.type, mask.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape(["B", 1, "S", "S"])
    node.replace_input_with(3, mask)
    return model


@pytest.mark.parametrize("spelling", ["dynamo", "script", "plain", "replaced"])
def test_attention_that_is_written_out_is_found(spelling: str, tmp_path: Path) -> None:
    """As the dynamo exporter, TorchScript and people write it: the same two nodes as of the operator."""
    before, after = attending(spelling=spelling), attending(spelling=spelling)
    result = attention(after)
    assert (result.found, result.rewritten, dict(result.declined)) == (1, 1, {})
    assert [each for each in operators(after) if each != "Not"] == ["Where", "Attention"]
    same(before, after, tmp_path)


@pytest.mark.parametrize("text", [
    "s = Softmax<axis = 1>(m) y = MatMul(s, v)",
    "s = Softmax<axis = -1>(m) y = MatMul(s, w)",
    "s = Sigmoid(m) y = MatMul(s, v)",
])  # fmt: skip
def test_what_only_looks_like_attention_is_left(text: str) -> None:
    """A softmax over another axis, one that mixes with weights, or another function."""
    values = "float[B, 2, S, 4] q, float[B, 2, S, 4] k, float[B, 2, S, 4] v, float[B, 2, S, S] n"
    proto = parse(
        f"g ({values}) => (float[B, 2, S, D] y) {{ t = Transpose<perm = [0, 1, 3, 2]>(k) m = MatMul(q, t)"
        f" {text} }}",
        opset=20,
        ir_version=9,
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 5, 3), np.float32), "w"))
    assert attention(ir.serde.deserialize_model(proto)).found == 0


@pytest.mark.parametrize(("text", "reason"), [
    ("m = MatMul(q, t) u = Tanh(m) s = Softmax(u) y = MatMul(s, v)", "and its softmax: Tanh"),
    ("m = MatMul(q, k) s = Softmax(m) y = MatMul(s, v)", "keys are not turned in a known way"),
    ("m = MatMul(q, t) s = Softmax(m) y = Einsum<equation = \"bhij,bhjd->bhid\">(s, v)", "with Einsum"),
    ("m = MatMul(q, t) s = Softmax(m) r = Reshape(s, i) y = MatMul(r, v)", "its heads lie in the batch"),
    ("m = MatMul(q3, k3) s = Softmax(m) y = MatMul(s, v3)", "its heads lie in the batch"),
    ("s = Softmax(v) y = MatMul(s, v)", "no product of queries and keys"),
])  # fmt: skip
def test_attention_of_another_form_is_declined_with_what_is_in_the_way(text: str, reason: str) -> None:
    """It counts as found, so that a shortfall has a reason, and stays."""
    values = "float[B, 2, 4, 4] q, float[B, 2, 4, 4] k, float[B, 2, 4, 4] v, int64[3] i"
    values += "".join(f", float[B, 4, 4] {name}3" for name in "qkv")
    proto = parse(
        f"g ({values}) => (float[B, C, S, D] y) {{ t = Transpose<perm = [0, 1, 3, 2]>(k) {text} }}",
        opset=20,
        ir_version=9,
    )
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    result = attention(model)
    assert (result.found, result.rewritten) == (1, 0)
    assert reason in next(iter(result.declined))
    assert "Softmax" in operators(model)


@pytest.mark.parametrize(("opset", "found"), [(12, 0), (13, 1)])
def test_a_softmax_without_an_axis_is_over_what_its_opset_says(opset: int, found: int) -> None:
    """Before 13 over all but the first dim, which is no attention."""
    model = attending(spelling="plain", mask=None)
    model.opset_imports[""] = opset
    next(node for node in model.graph if node.op_type == "Softmax").attributes.pop("axis")
    assert attention(model).found == found


def test_scores_that_are_used_elsewhere_keep_their_nodes() -> None:
    """A model that returns its attention's shares needs them."""
    model = attending(spelling="plain")
    shares = next(node.outputs[0] for node in model.graph if node.op_type == "Softmax")
    model.graph.outputs.append(shares)
    result = attention(model)
    assert list(result.declined) == ["its scores, or its keys and values, are used elsewhere"]


def test_cross_attention_keeps_its_products(tmp_path: Path) -> None:
    """Queries of one tensor and keys of another cannot be one product; the transposes go."""
    before, after = attending(shared=False), attending(shared=False)
    assert attention(after).rewritten == 1
    assert sorted(operators(after)) == sorted([*["MatMul", "Add"] * 3, "Where", "MultiHeadAttention"])
    same(before, after, tmp_path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"heads": 4, "key_heads": 2}, "several heads of queries share one of keys"),
        (
            {"shared": False, "keys": "T", "mask": None, "causal": True},
            "its queries and keys are not known to be as many, and a later key is forbidden",
        ),
    ],
)
def test_attention_that_the_kernel_cannot_take_stays(given: dict[str, object], reason: str) -> None:
    """With the reason; nothing around it is changed."""
    after = attending(**given)  # type: ignore[arg-type]
    result = attention(after)
    assert (result.found, result.rewritten) == (1, 0)
    assert list(result.declined) == [reason]
    assert "Attention" in [node.op_type for node in after.graph if node.domain == ""]
    assert operators(after).count("Transpose") == 4


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    size=st.sampled_from([2, 4, 8]),
    mask=st.sampled_from([None, "bool", "float", "row", "numbers row", "plane"]),
    causal=st.booleans(),
    shared=st.booleans(),
    bias=st.booleans(),
    split=st.booleans(),
    spelling=st.sampled_from(["whole", "dynamo", "script", "plain", "replaced"]),
    positions=st.booleans(),
    batch=st.integers(1, 3),
    rows=st.integers(1, 6),
    keys=st.integers(1, 6),
)
def test_attention_answers_the_same(  # type: ignore[no-untyped-def]
    heads, size, mask, causal, shared, bias, split, spelling, positions, batch, rows, keys, tmp_path_factory
) -> None:
    """With and without masks, causal or not, packed or not, with as many keys as queries or not, whatever
    takes the answer, and however it is written."""
    causal = causal and spelling == "whole"
    if spelling == "whole" and mask in ("row", "numbers row"):
        mask = "bool"  # ONNX Runtime's kernel of the operator refuses a row
    given_to = {
        "heads": heads,
        "size": size,
        "mask": None if causal else mask,
        "causal": causal,
        "shared": shared,
        "bias": bias,
        "split": split,
        "spelling": spelling,
        "positions": positions and spelling != "whole",
        "keys": "S" if shared or causal else "T",
    }
    before, after = attending(**given_to), attending(**given_to)
    assert attention(after).rewritten == 1
    same(before, after, tmp_path_factory.mktemp("pass"), batch, rows, keys)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    size=st.sampled_from([2, 4, 8]),
    mask=st.sampled_from([None, "float", "plane"]),
    shared=st.booleans(),
    split=st.booleans(),
    batch=st.integers(1, 3),
    rows=st.integers(1, 6),
    keys=st.integers(1, 6),
)
def test_spelled_out_attention_answers_the_same(  # type: ignore[no-untyped-def]
    heads, size, mask, shared, split, batch, rows, keys, tmp_path_factory
) -> None:
    """With its keys turned in three dims, for as many keys as queries or not; where nothing masks, or
    numbers do."""
    given_to = {"heads": heads, "size": size, "mask": mask, "shared": shared, "split": split}
    before, after = (attending(**given_to, keys="S" if shared else "T") for _ in range(2))
    assert turned_keys(after).rewritten == 1
    assert "Attention" not in operators(after)
    assert [list(n.attributes["perm"].as_ints()) for n in after.graph if n.op_type == "Transpose"].count(
        [0, 2, 1]
    ) == 1
    same(before, after, tmp_path_factory.mktemp("pass"), batch, rows, keys)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"heads": 4, "key_heads": 2}, "several heads of queries share one of keys"),
        ({"mask": None, "causal": True}, "a later key is forbidden"),
        ({"mask": "bool"}, "its numbers, or its mask, are not float32"),
    ],
)
def test_attention_that_says_more_than_its_products_is_not_spelled_out(
    given: dict[str, object], reason: str
) -> None:
    """With the reason; the operator stays."""
    after = attending(**given)  # type: ignore[arg-type]
    result = turned_keys(after)
    assert (result.found, result.rewritten, list(result.declined)) == (1, 0, [reason])
    assert operators(after).count("Attention") == 1


def residual(*, bias: bool = True, used_again: bool = False, broadcast: bool = False) -> ir.Model:
    """A residual sum and its norm, on [B, S, 8]."""
    second = "float[1, 8] b" if broadcast else "float[B, S, 8] b"
    lines = ["p = Add(a, shift)"] if bias else ["p = Identity(a)"]
    lines.append("s = Add(p, b)")
    lines.append("n = LayerNormalization<epsilon = 0.001>(s, scale, offset)")
    lines.append("y = Add(n, s)" if used_again else "y = Relu(n)")
    model = parse(
        f"g (float[B, S, 8] a, {second}) => (float[B, S, 8] y) {{ {' '.join(lines)} }}",
        opset=20,
        ir_version=9,
    )
    rng = np.random.default_rng(1)
    for name in ("shift", "scale", "offset"):
        if name != "shift" or bias:
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(rng.standard_normal(8).astype(np.float32), name)
            )
    return loaded(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("used_again", [True, False])
def test_a_residual_sum_is_normalized_in_one_node(bias: bool, used_again: bool, tmp_path: Path) -> None:
    """With the bias before it; where the sum is needed again, the kernel gives it as well."""
    before, after = residual(bias=bias, used_again=used_again), residual(bias=bias, used_again=used_again)
    result = skip_norm(after)
    assert (result.found, result.rewritten) == (1, 1)
    assert operators(after).count("SkipLayerNormalization") == 1
    assert operators(after).count("LayerNormalization") == 0
    assert operators(after).count("Add") == int(used_again)
    same(before, after, tmp_path)


def test_a_broadcast_sum_is_not_a_residual(tmp_path: Path) -> None:
    """The kernel takes two tensors of one shape."""
    before, after = residual(broadcast=True), residual(broadcast=True)
    result = skip_norm(after)
    assert list(result.declined) == ["its inputs are not known to have three dims"]
    same(before, after, tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_residual_norms_answer_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is a bias, or only looks like one, on either side, however the norm is written, and whoever
    else takes the sum."""
    width = data.draw(st.integers(1, 9), "width")
    lines, constants = [], {"scale": data.draw(st.sampled_from([(width,), (1,)]), "scale")}
    constants["offset"] = (width,)
    parts = {"a": "a", "b": data.draw(st.sampled_from(["a", "b"]), "second")}
    for side in ("a", "b"):
        shape = data.draw(st.sampled_from([None, (width,), (1,), (1, 1, width), ()]), f"bias of {side}")
        if shape is not None:
            constants[f"bias_{side}"] = shape
            both = data.draw(st.permutations([parts[side], f"bias_{side}"]))
            lines.append(f"biased_{side} = Add({', '.join(both)})")
            parts[side] = f"biased_{side}"
    lines.append(f"s = Add({parts['a']}, {parts['b']})")
    offset = ", offset" if data.draw(st.booleans(), "offset") else ""
    axis = data.draw(st.sampled_from(["", ", axis = -1", ", axis = 2"]), "axis")
    lines.append(f"n = LayerNormalization<epsilon = 0.001{axis}>(s, scale{offset})")
    after = {"nobody": "y = Relu(n)", "the sum": "y = Add(n, s)", "a bias": f"y = Sub(n, {parts['a']})"}
    lines.append(data.draw(st.sampled_from(list(after.values())), "what follows"))
    rng = np.random.default_rng(data.draw(st.integers(0, 9), "seed"))
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in constants.items()}

    def model() -> ir.Model:
        dims = f"B, S, {width}"
        text = f"g (float[{dims}] a, float[{dims}] b) => (float[{dims}] y) {{ {' '.join(lines)} }}"
        proto = parse(text, opset=20, ir_version=9)
        for name, array in weights.items():
            if any(name in line for line in lines):
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return loaded(proto)

    before, rewritten = model(), model()
    found = skip_norm(rewritten)
    assert (found.found, found.rewritten) == (1, constants["scale"] == (width,))
    same(before, rewritten, tmp_path_factory.mktemp("pass"), 2, data.draw(st.integers(1, 4), "rows"))


def grouped(groups: int, channels: int = 4, dims: str = "B, 4, H, W") -> ir.Model:
    """A group norm of `x`."""
    text = f"y = GroupNormalization<num_groups = {groups}, epsilon = 0.001>(x, s, b)"
    proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ {text} }}", opset=21, ir_version=10)
    rng = np.random.default_rng(3)
    for name in ("s", "b"):
        array = rng.standard_normal(channels).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return loaded(proto)


def test_a_group_norm_becomes_an_instance_norm_of_its_groups(tmp_path: Path) -> None:
    """Groups are laid side by side, and scaled by channel afterwards; a group for each channel needs
    neither. What is expected follows from the formula."""
    x = np.random.default_rng(5).standard_normal((2, 4, 3, 5)).astype(np.float32)
    for groups in (1, 2, 4):
        before, after = grouped(groups), grouped(groups)
        result = group_norm(after)
        assert (result.found, result.rewritten) == (1, 1)
        wide = ["Shape", "Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
        assert operators(after) == (["InstanceNormalization"] if groups == 4 else wide)
        found = answers(after, tmp_path / "after.onnx", {"x": x})["y"]
        rows = x.reshape(2, groups, -1).astype(np.float64)
        rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 0.001)
        scale, bias = (constant(before.graph.initializers[name]) for name in ("s", "b"))
        assert scale is not None
        assert bias is not None
        expected = rows.reshape(x.shape) * scale.reshape(4, 1, 1) + bias.reshape(4, 1, 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_group_norms_answer_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of any number of groups and dims, and at any size."""
    groups, each = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(1, 6)) for _ in range(data.draw(st.integers(1, 3)))]
    channels = groups * each
    dims = ", ".join(["B", str(channels), *"HWD"[: len(sizes)]])
    before, after = grouped(groups, channels, dims), grouped(groups, channels, dims)
    assert group_norm(after).rewritten == 1
    shape = (data.draw(st.integers(1, 3)), channels, *sizes)
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    folder = tmp_path_factory.mktemp("grouped")
    expected = answers(before, folder / "before.onnx", {"x": x})["y"]
    np.testing.assert_allclose(
        answers(after, folder / "after.onnx", {"x": x})["y"], expected, rtol=0, atol=1e-5
    )


def test_group_norms_that_cannot_be_rewritten_say_why() -> None:
    """Scales of groups, scales that are computed, and dims nobody knows."""
    old = grouped(2)
    old.opset_imports[""] = 20
    assert list(group_norm(old).declined) == ["before opset 21 its scale is that of a group"]
    proto = parse(
        """g (float[B, 4, H] x, float[4] s) => (float[B, 4, H] y) {
        y = GroupNormalization<num_groups = 2>(x, s, s) }""",
        opset=21,
        ir_version=10,
    )
    assert list(group_norm(loaded(proto)).declined) == ["its scale is not a constant"]
    unknown = grouped(2)
    unknown.graph.inputs[0].shape = None
    assert list(group_norm(unknown).declined) == ["its input is not known to have three dims or more"]
    halves = grouped(2)
    halves.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    assert list(group_norm(halves).declined) == ["its type is FLOAT16"]


def test_what_happened_is_said_in_a_line() -> None:
    """How often it was found and rewritten, and why it was not."""
    result = attention(attending(heads=4, key_heads=2))
    assert str(result) == "0 of 1 (1: several heads of queries share one of keys)"
    assert str(attention(attending())) == "1 of 1"
    assert str(skip_norm(attending())) == "0 of 0"


def test_rows_that_are_forbidden_everything_give_zero_if_guarded(tmp_path: Path) -> None:
    """A window beside padding forbids a query every key: attention is 0 there, the kernel gives a mean."""
    for spelling in ("whole", "dynamo"):
        before, plain, guarded = (attending(spelling=spelling) for _ in range(3))
        assert attention(plain).rewritten == guarded_attention(guarded).rewritten == 1
        feeds = feeds_of(before, 2, 5)
        feeds["mask"][1, :, 2:4] = False
        expected = answers(before, tmp_path / "before.onnx", feeds)["y"]
        assert (expected[1, 2:4] == 0).all()
        found = answers(guarded, tmp_path / "guarded.onnx", feeds)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        assert np.abs(answers(plain, tmp_path / "plain.onnx", feeds)["y"][1, 2:4]).max() > 0.01
        same(before, guarded, tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    size=st.sampled_from([2, 4, 8]),
    mask=st.sampled_from(["bool", "float", "row", "plane"]),
    shared=st.booleans(),
    bias=st.booleans(),
    split=st.booleans(),
    spelling=st.sampled_from(["whole", "dynamo", "script", "plain", "replaced"]),
    batch=st.integers(1, 3),
    rows=st.integers(1, 6),
)
def test_guarded_attention_answers_the_same(  # type: ignore[no-untyped-def]
    heads, size, mask, shared, bias, split, spelling, batch, rows, tmp_path_factory
) -> None:
    """As the pass that does not guard, wherever a row is allowed something; what it declines, it leaves."""
    if spelling == "whole" and mask == "row":
        mask = "bool"  # ONNX Runtime's kernel of the operator refuses a row
    given_to = {"heads": heads, "size": size, "mask": mask, "shared": shared, "bias": bias, "split": split}
    before, after = (attending(**given_to, spelling=spelling) for _ in range(2))
    found = guarded_attention(after)
    assert found.rewritten + sum(found.declined.values()) == found.found == 1
    same(before, after, tmp_path_factory.mktemp("pass"), batch, rows)


def test_minus_infinity_is_no_nan(tmp_path: Path) -> None:
    """A mask of numbers may hold it, and forbid a row everything: the original gives 0 there, and so it is
    if guarded; nothing is NaN without."""
    for spelling in ("whole", "dynamo"):
        before, plain, guarded = (attending(spelling=spelling, mask="float") for _ in range(3))
        assert attention(plain).rewritten == guarded_attention(guarded).rewritten == 1
        feeds = feeds_of(before, 2, 5)
        feeds["mask"][1, :, 2:4] = -np.inf
        feeds["mask"][0, :, :, 1] = -np.inf
        expected = answers(before, tmp_path / "before.onnx", feeds)["y"]
        assert (expected[1, 2:4] == 0).all()
        found = answers(guarded, tmp_path / "guarded.onnx", feeds)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        found = answers(plain, tmp_path / "plain.onnx", feeds)["y"]
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-6 * np.abs(expected).max())
        assert np.isfinite(found).all()


def test_masks_that_do_not_tell_alone_are_not_guarded() -> None:
    """Where causality forbids, too, or a mask is another for each head, rows cannot be told by it."""
    reason = "which rows are forbidden everything is not told by its mask alone"
    assert list(guarded_attention(attending(spelling="plain", positions=True)).declined) == [reason]
    model = attending()
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    assert list(guarded_attention(model).declined) == [reason]


def test_old_graphs_keep_what_their_opset_cannot_say() -> None:
    """A row of a mask for all queries needs Shape with a start, and guarding ReduceMax with axes."""
    model = attending(spelling="plain", mask="numbers row")
    model.opset_imports[""] = 14
    assert list(attention(model).declined) == ["its mask is the same for all rows, which needs opset 15"]
    model = attending(spelling="plain")
    model.opset_imports[""] = 17
    (reason,) = guarded_attention(model).declined
    assert reason == "rows that are forbidden everything need opset 18, and the graph has 17"
    assert attention(model).rewritten == 1
