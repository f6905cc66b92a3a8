"""Graphs that bfloat16 would break at lengths that nobody judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import infer
from infer.backends import FIXED_SHAPES
from infer.backends.openvino import OpenvinoBackend, export
from infer.errors import BackendError
from infer.guard import Guard
from infer.optimizer import parse_budget
from infer.optimizer.positions import needs_more_bits
from infer.session import open_session
from tests.here import openvino_rounds
from tests.optimizer.planted import optimized, why
from tests.tiny import parse

WIDTH = 64
COUNT = "s = Shape(ids) l = Gather<axis = 0>(s, one) ls = Squeeze(l)"
FLOATS = (
    f"{COUNT} lf = Cast<to = 1>(ls) none = Constant<value_float = 0.0>()"
    " each = Constant<value_float = 1.0>() r = Range(none, lf, each)"
)
INTS = (
    f"{COUNT} none = Constant<value_int = 0>() each = Constant<value_int = 1>() i = Range(none, ls, each)"
)
FED = "f = Cast<to = 1>(ids)"
PHASES = "rr = Unsqueeze(r, one) a = MatMul(rr, freq)"
PHASES_OF_EACH = (
    "rr = Unsqueeze(r, one) sx = Shape(x) each_freq = Expand(freq, sx) at = Mul(rr, each_freq)"
    " a = Identity(at)"
)
PARTLY = "u = Unsqueeze(r, one) k = Where(m, u, x)"
MASKED = "float[N, L, 64] x, bool[N, L, 64] m"
TIMED = "float[N, L, 64] x, float[N, L] t"


def graph(steps: str, x: str = "float[N, L, 64] x") -> onnx.ModelProto:
    """Values x and integers ids, of any length; `one`, `freq` and `w` are weights."""
    model = parse(f"g (int64[N, L] ids, {x}) => (float[N, L, 64] y) {{ {steps} }}")
    frequencies = (1 / 10000 ** (np.arange(WIDTH) / WIDTH)).astype(np.float32)[None]
    square = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8
    for name, array in (
        ("one", np.array([1])),
        ("two", np.array([2])),
        ("freq", frequencies),
        ("w", square),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


SINES = graph(f"{FLOATS} {PHASES} p = Sin(a) e = Mul(x, p) y = MatMul(e, w)")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (SINES, "Sin"),
        (graph(f"{INTS} f = Cast<to = 1>(i) g = Mul(f, freq) p = Cos(g) y = Add(x, p)"), "Cos"),
        (graph(f"{FED} u = Unsqueeze(f, two) g = Mul(u, freq) p = Sin(g) y = Add(x, p)"), "Sin"),
        (graph(f"{FLOATS} {PHASES_OF_EACH} p = Sin(a) y = Mul(x, p)"), "Sin"),
        (graph(f"{FLOATS} {PARTLY} p = Cos(k) y = Mul(x, p)", MASKED), "Cos"),
        (graph("u = Unsqueeze(t, two) a = Mul(u, freq) p = Sin(a) y = Mul(x, p)", TIMED), "Sin"),
        (graph(f"{FLOATS} rr = Unsqueeze(r, one) slope = Mul(rr, freq) y = Add(x, slope)"), "Add"),
        (graph(f"{FLOATS} u = Unsqueeze(r, one) m = Less(r, u) b = Cast<to = 1>(m) y = Mul(x, b)"), "Less"),
        (graph(f"{FED} c = CumSum(f, one) n = Cast<to = 7>(c) y = Gather<axis = 0>(w, n)"), "Cast"),
        (graph(f"{COUNT} f = Cast<to = 1>(ls) h = Div(f, f) k = Floor(h) y = Mul(x, k)"), "Floor"),
        (graph("y = GridSample(x, x)"), "GridSample"),
    ],
)  # fmt: skip
def test_what_may_break_is_found(model: onnx.ModelProto, found: str) -> None:
    """Phases of positions that are counted or fed, as integers or floats, in the spellings that exporters
    have for rotary embeddings and time steps; positions that are added to values, as in ALiBi, compared, or
    looked up by; sizes that are rounded; places in pictures."""
    assert (needs_more_bits(ir.from_proto(model)) or "").startswith(f"{found} ")


@pytest.mark.parametrize(
    "steps",
    [
        "p = Tanh(x) y = MatMul(p, w)",
        f"{INTS} t = Gather<axis = 0>(w, i) y = Add(x, t)",
        f"{INTS} u = Unsqueeze(i, one) m = Less(i, u) f = Cast<to = 1>(m) y = Add(x, f)",
        f"{INTS} u = Unsqueeze(i, one) m = Less(i, u) n = Cast<to = 7>(m) y = Gather<axis = 0>(w, n)",
        "m = Cast<to = 1>(ids) u = Unsqueeze(m, two) n = Mul(u, freq) y = Add(x, n)",
        "z = Constant<value_float = 0.0>() m = Greater(x, z) f = Cast<to = 1>(m) y = Mul(x, f)",
    ],
)
def test_what_does_not_is_left_alone(steps: str) -> None:
    """Tables that positions are looked up in, comparisons of integers and with constants, and masks."""
    typed = onnx.shape_inference.infer_shapes(graph(steps))  # as exporters tell types
    assert needs_more_bits(ir.from_proto(typed)) is None


VALUES = "float[N, L, 64] x"
ONES = "s = Shape(ids) o = ConstantOfShape<value = float[1] {1.0}>(s) r = CumSum(o, one)"
SLOPED = "rr = Unsqueeze(r, two) slope = Mul(rr, freq)"


@pytest.mark.parametrize(
    ("steps", "x", "found"),
    [
        (f"{FLOATS} {PHASES} p = Sin(a) y = Mul(x, p)", VALUES, ""),
        (f"{INTS} f = Cast<to = 1>(i) g = Mul(f, freq) p = Cos(g) y = Add(x, p)", VALUES, ""),
        (f"{FLOATS} {PHASES_OF_EACH} p = Sin(a) y = Mul(x, p)", VALUES, ""),
        (f"{ONES} {SLOPED} p = Sin(slope) y = Mul(x, p)", VALUES, ""),
        (f"{COUNT} f = Cast<to = 1>(ls) h = Div(f, f) k = Floor(h) y = Mul(x, k)", VALUES, ""),
        (f"{ONES} {SLOPED} y = Add(x, slope)", VALUES, "Add"),
        (f"{FED} u = Unsqueeze(f, two) g = Mul(u, freq) p = Sin(g) y = Add(x, p)", VALUES, "Sin"),
        (f"{FLOATS} {PARTLY} p = Cos(k) y = Mul(x, p)", MASKED, "Cos"),
        ("u = Unsqueeze(t, two) a = Mul(u, freq) p = Sin(a) y = Mul(x, p)", TIMED, "Sin"),
        (f"{ONES} n = RandomNormalLike(o) u = Unsqueeze(n, two) p = Sin(u) y = Mul(x, p)", VALUES, "Sin"),
    ],
)  # fmt: skip
def test_what_follows_from_known_shapes_may_be_computed_before(steps: str, x: str, found: str) -> None:
    """What is fed, drawn, or added to values may still break."""
    model = ir.from_proto(graph(steps, x))
    assert needs_more_bits(model) is not None
    assert (needs_more_bits(model, shapes_known=True) or "").partition(" ")[0] == found


def test_inside_a_branch_it_is_found() -> None:
    """Graphs in graphs are looked through."""
    inner = onnx.parser.parse_graph("b () => (float[N, L, 64] q) { q = Sin(x) }")
    other = onnx.parser.parse_graph("b () => (float[N, L, 64] q) { q = Identity(x) }")
    model = graph(
        "some = Constant<value_int = 1>() yes = Cast<to = 9>(some) z = Identity(x) y = Identity(z)"
    )
    assert needs_more_bits(ir.from_proto(model)) is None
    node = onnx.helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other)
    model.graph.node[-1].CopyFrom(node)
    assert (needs_more_bits(ir.from_proto(model)) or "").startswith("Sin ")
    sine = inner.node[0]
    sine.input[0] = "o"
    model = graph(f"{ONES} some = Constant<value_int = 1>() yes = Cast<to = 9>(some) z = Identity(x)")
    node.attribute[0].g.CopyFrom(inner)
    model.graph.node.append(node)
    assert (needs_more_bits(ir.from_proto(model), shapes_known=True) or "").startswith("Sin ")


def test_bfloat16_is_not_tried_where_longer_inputs_would_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged with a few positions it would be within the budget."""
    monkeypatch.setattr(OpenvinoBackend, "compute_dtypes", lambda self, machine, signature: ("bfloat16",))
    wishes: dict[str, Any] = {"budgets": (parse_budget("cosine>=0.9"),), "backends": ("openvino",)}
    onnx.save(SINES, tmp_path / "open.onnx")
    found = why(optimized(tmp_path / "open.onnx", tmp_path / "open.infer", **wishes))
    assert "longer inputs could be answered otherwise" in found["openvino-bfloat16"][1]


def test_long_inputs_do_break_where_there_are_kernels(tmp_path: Path) -> None:
    """The reason for all this: cosine 0.9999 with 16 positions, and far less with 1,999."""
    onnx.save(SINES, tmp_path / "g.onnx")
    nearest = {}
    with infer.load(tmp_path / "g.onnx", backend="openvino") as session:
        plan = replace(session.plan, compute_dtype="bfloat16")
        with open_session(session.artifact, plan=plan) as rounded:
            for length in (16, 1999):
                x = np.random.default_rng(0).standard_normal((1, length, WIDTH)).astype(np.float32)
                feeds = {"ids": np.ones((1, length), np.int64), "x": x}
                a, b = (each.run(feeds)["y"][:, 1:] for each in (session, rounded))
                cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
                nearest[length] = float(cosines.min())
    assert nearest[16] > 0.999
    assert (nearest[1999] < 0.99) == openvino_rounds()


CHANNELS = 8


def sines_in_pictures(counted: str) -> onnx.ModelProto:
    """Positions down the pictures, of what is counted; then a product, to tell what it is computed in."""
    steps = f"{counted} ph = Mul(ps, freq4) p = Sin(ph) e = Mul(x, p) y = Conv(e, w4)"
    model = parse(f"g (float[N, 8, H, W] x) => (float[N, 8, H, W] y) {{ {steps} }}")
    weights = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32) / 3
    frequencies = (
        (1 / 10000 ** (np.arange(CHANNELS) / CHANNELS)).astype(np.float32).reshape(1, CHANNELS, 1, 1)
    )
    for name, array in (("w4", weights), ("freq4", frequencies), ("two", np.array([2]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


BY_SHAPE = "s = Shape(x) o = ConstantOfShape<value = float[1] {1.0}>(s) ps = CumSum(o, two)"
BY_VALUES = "m = Abs(x) one = Div(m, m) ps = CumSum(one, two)"


def worst(found: np.ndarray, exact: np.ndarray) -> float:
    """The least cosine of a row of pictures."""
    dots = (found * exact).sum((1, 3))
    return float((dots / np.linalg.norm(found, axis=(1, 3)) / np.linalg.norm(exact, axis=(1, 3))).min())


@pytest.mark.parametrize(("counted", "rounded"), [(BY_SHAPE, 4), (BY_VALUES, 0)])
def test_with_fixed_shapes_only_what_was_folded_is_rounded(
    counted: str, rounded: int, tmp_path: Path
) -> None:
    """Compiled for its shape a long picture is right, the first four are computed in bfloat16, and others
    in float32; all of them, where what is counted was not computed before."""
    onnx.save(sines_in_pictures(counted), tmp_path / "g.onnx")
    in_float = []
    with infer.load(tmp_path / "g.onnx", backend="openvino") as session:
        plan = replace(session.plan, compute_dtype=FIXED_SHAPES)
        with open_session(session.artifact, plan=plan) as fixed:
            for height in (1999, 16, 3, 4, 1500, 2):
                x = np.random.default_rng(0).standard_normal((1, CHANNELS, height, 2)).astype(np.float32)
                exact, found = session.run({"x": x})["y"], fixed.run({"x": x})["y"]
                assert worst(found, exact) > 0.999
                in_float.append(bool(np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()))
    rounded *= openvino_rounds()
    assert in_float == [False] * rounded + [True] * (6 - rounded)


def test_a_search_takes_bfloat16_for_fixed_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_backends: Callable[[dict[str, float]], None]
) -> None:
    """Where sizes alone are counted; the first type says why it was not tried."""
    two_backends({f"openvino-{FIXED_SHAPES}": 0.5})
    monkeypatch.setattr(
        OpenvinoBackend, "compute_dtypes", lambda self, machine, signature: ("bfloat16", FIXED_SHAPES)
    )
    budgets = (parse_budget("cosine>=0.9"),)
    for counted, tried in ((BY_SHAPE, True), (BY_VALUES, False)):
        onnx.save(sines_in_pictures(counted), tmp_path / "open.onnx")
        output = tmp_path / f"{tried}.infer"
        found = why(optimized(tmp_path / "open.onnx", output, budgets=budgets))
        assert "longer inputs could be answered otherwise" in found["openvino-bfloat16"][1]
        refused = "longer inputs could be answered otherwise" in found[f"openvino-{FIXED_SHAPES}"][1]
        assert refused != tried
        with infer.load(output) as session:
            assert session.plan.compute_dtype == (FIXED_SHAPES if tried else None)


@pytest.mark.parametrize(("counted", "precise"), [(BY_SHAPE, False), (BY_VALUES, True)])
def test_what_was_compiled_in_float32_is_not_kept_for_bfloat16(
    counted: str, precise: bool, tmp_path: Path
) -> None:
    """It would be rounded as it is taken."""
    onnx.save(sines_in_pictures(counted), tmp_path / "g.onnx")
    x = np.ones((1, CHANNELS, 16, 2), np.float32)
    with infer.load(tmp_path / "g.onnx", backend="openvino") as session:
        plan = replace(session.plan, compute_dtype=FIXED_SHAPES)
        feeds = Guard(session.signature).admit({"x": x})
        if not precise:
            assert export(tmp_path / "g.onnx", plan, feeds, session.signature)
            return
        with pytest.raises(BackendError, match="compiled in f32 what the plan has in bf16"):
            export(tmp_path / "g.onnx", plan, feeds, session.signature)
