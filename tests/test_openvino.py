"""The OpenVINO backend: the same answers, in the same arrays, and its own refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infer
from infer.backends import FIXED_SHAPES, load_backend
from infer.errors import BackendError, SessionClosedError
from infer.graphwriting import save
from infer.machine import this_machine
from infer.measure.waterfall import waterfall
from infer.optimizer.quantization import static
from infer.optimizer.quantization.calibration import observe
from infer.options import PlanOptions
from infer.session import open_artifact, open_session
from tests.command import infer_command
from tests.here import openvino_rounds
from tests.test_passes import loaded
from tests.tiny import parse, write

X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)

MIXED = """g (float[N, M] x, int64[N] i, bool[N, M] b) => (float[N, M] y, int64[N] j, bool[N, M] n) {
    y = Sin(x)
    j = Add(i, i)
    n = Not(b)
}"""


def mixed(rows: int, columns: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows + columns)
    return {
        "x": rng.standard_normal((rows, columns)).astype(np.float32),
        "i": rng.integers(-(2**20), 2**20, rows),
        "b": rng.random((rows, columns)) > 0.5,
    }


def test_it_answers_as_onnxruntime_does(net: Path) -> None:
    """For more batches than it compiles anew for, in turn and again, none among them."""
    with infer.load(net) as first, infer.load(net, backend="openvino") as session:
        assert session.plan.backend == "openvino"
        assert not session.plan.spinning
        for rows in (3, 1, 2, 5, 8, 3, 13, 1, 8, 5):
            x = np.random.default_rng(rows).standard_normal((rows, 10)).astype(np.float32)
            expected = first.run({"x": x})["logits"]
            np.testing.assert_allclose(session.run({"x": x})["logits"], expected, rtol=1e-5, atol=1e-6)


def test_several_dims_types_and_chosen_outputs(tmp_path: Path) -> None:
    """Integers and booleans have the dtypes of the signature; only what is asked for comes back."""
    path = write(tmp_path, MIXED)
    with infer.load(path) as first, infer.load(path, backend="openvino") as session:
        for rows, columns in ((2, 3), (1, 1), (4, 7), (2, 3), (5, 2), (6, 1), (7, 1)):
            feeds = mixed(rows, columns)
            expected, found = first.run(feeds), session.run(feeds)
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        assert list(session.run(feeds, ["j"])) == ["j"]


def test_answers_and_feeds_stay_as_they_are(net: Path) -> None:
    """Answers belong to the caller, and feeds are not written to."""
    with infer.load(net, backend="openvino") as session:
        before = X.copy()
        first = session.run({"x": X})["logits"]
        kept = first.copy()
        session.run({"x": X + 1})
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(X, before)
        x = X.copy()
        answer = session.run({"x": x})["logits"]
        x[:] = 0  # what was shared with the last run must not be read again
        np.testing.assert_array_equal(session.run({"x": X})["logits"], answer)


def test_eight_threads_answer_alike(net: Path) -> None:
    """With shapes that are new to all of them at once: one session, not a bit of difference."""
    batches = [X[:1], X[:2], X, np.concatenate([X, X]), np.concatenate([X, X, X])]
    with infer.load(net, backend="openvino") as session:

        def work(i: int) -> list[np.ndarray]:
            return [session.run({"x": batches[(i + k) % 5]})["logits"] for k in range(100)]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(8)))
        truth = [session.run({"x": batch})["logits"] for batch in batches]
    for i, answers in enumerate(found):
        for k, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, truth[(i + k) % 5])


def test_a_graph_made_for_one_size_still_runs(tmp_path: Path) -> None:
    """One that refuses to be compiled for its feeds' shapes is compiled for any."""
    path = write(tmp_path, "g (float[2, 3] x) => (float[3, 2] y) { y = Transpose(x) }")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with infer.load(path, backend="openvino") as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x.T)


@pytest.mark.parametrize(("dims", "fixed"), [("N, 3, H, W", 4), ("N, L", 0), ("N, 3", 4)])
def test_what_is_compiled_for_its_size(dims: str, fixed: int, tmp_path: Path) -> None:
    """The first four sizes of pictures, or where one dim is open; texts of any length have one model."""
    path = write(tmp_path, f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Abs(x) }}")
    rng = np.random.default_rng(0)
    with infer.load(path, backend="openvino") as session:
        for _ in range(2):
            for size in range(1, 7):
                sizes = {"N": size, "H": size + 2, "W": 9 - size, "L": 2 * size, "3": 3}
                x = rng.standard_normal([sizes[dim] for dim in dims.split(", ")]).astype(np.float32)
                np.testing.assert_array_equal(session.run({"x": x})["y"], np.abs(x))
        models = session._executable._models  # type: ignore[attr-defined]
        assert len(models._fixed) == fixed
        assert models._any is not None


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_are_divided_among_streams(streams: int, tmp_path: Path) -> None:
    """As many as asked for, and callers who come at once get their own answers."""
    path = write(tmp_path, "g (float[N, L] x) => (float[N, L] y) { y = Relu(x) }")
    with infer.load(path, backend="openvino", num_threads=2, streams=streams) as session:
        compiled = session._executable._models.requests(((1, 1),))._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("NUM_STREAMS") == streams
        with ThreadPoolExecutor(4) as pool:
            asked = [np.full((1, 1 + n % 5), n - 20, np.float32) for n in range(40)]
            answers = list(pool.map(lambda x: session.batcher.run({"x": x})["y"], asked))
    for x, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer, np.maximum(x, 0))


def test_large_feeds_are_not_kept_for_every_thread(tmp_path: Path) -> None:
    """A request holds its feeds until it is asked again, so only two of those with large ones are kept."""
    path = write(tmp_path, "g (float[N, 1000] x) => (float[N, 1000] y) { y = Relu(x) }")
    with infer.load(path, backend="openvino") as session:
        large = np.ones((600, 1000), np.float32)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: session.run({"x": large}), range(24)))
        kept = session._executable._models.requests(((600, 1000),))._idle  # type: ignore[attr-defined]
        assert 1 <= len(kept) <= 3  # two, or one more where two threads looked at once


PASSED_ON = """g (float[N] x, float s, int64[N] i) => (float[N] a, float[N] b, float[N] c, int64[N] j) {
    a = Mul(x, s)
    b = Mul(x, s)
    c = Identity(x)
    j = Identity(i)
}"""


@given(sizes=st.lists(st.integers(0, 20000), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_bound_or_not_answers_are_equal(sizes: list[int], seed: int) -> None:
    """Of feeds on both sides of what is bound to a request, of outputs that are one value, of an input that
    is an output, and of scalars; and feeds may be read-only. Each is asked twice, with other values."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        path = write(Path(folder), PASSED_ON)
        with infer.load(path) as first, infer.load(path, backend="openvino") as session:
            for size in (*sizes, *sizes):
                feeds = {
                    "x": rng.standard_normal(size).astype(np.float32),
                    "s": np.array(rng.standard_normal(), np.float32),
                    "i": rng.integers(-(2**31), 2**31, size),
                }
                expected = first.run(feeds)
                for array in feeds.values():
                    array.flags.writeable = False
                found = session.run(feeds)
                assert expected.keys() == found.keys()
                for name, array in expected.items():
                    np.testing.assert_array_equal(found[name], array)
                    assert found[name].flags.owndata


@pytest.mark.parametrize("count", [1, 32, 33])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
def test_integers_of_more_bits_are_found_wherever_they_are(tmp_path: Path, count: int, value: int) -> None:
    """Few or many, the last as well as the first; the largest that fit are answered."""
    path = write(tmp_path, "g (int64[N, 1] i) => (int64[N, 1] j) { j = Identity(i) }")
    with infer.load(path, backend="openvino") as session:
        for place in (0, count - 1):
            feed = np.full((count, 1), 2**31 - 1)
            feed[-1] = -(2**31)
            np.testing.assert_array_equal(session.run({"i": feed})["j"], feed)
            feed[place] = value
            with pytest.raises(BackendError, match="integers of 32 bits"):
                session.run({"i": feed})


def test_large_integers_are_refused(tmp_path: Path) -> None:
    """It computes with 32 bits, and 2**40 would become something else in silence."""
    path = write(tmp_path, MIXED)
    feeds = mixed(2, 3)
    feeds["i"] = np.array([1, 2**40])
    with infer.load(path, backend="openvino") as session:
        with pytest.raises(BackendError, match="integers of 32 bits, and input 'i' has larger ones"):
            session.run(feeds)
        feeds["i"] = np.array([1, -(2**31)])
        session.run(feeds, ["y"])


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    """Strings, doubles, graphs as they are written, and operators it does not know, in a sentence each."""
    path = write(tmp_path, "g (string[N] x) => (string[N] y) { y = Identity(x) }")
    with pytest.raises(BackendError, match="computes with no string, which 'x' is"):
        infer.load(path, backend="openvino")
    path = write(tmp_path, "g (float[N] x) => (double[N] y) { y = Cast<to = 11>(x) }")
    with pytest.raises(BackendError, match="computes with no float64, which 'y' is"):
        infer.load(path, backend="openvino")
    path = write(tmp_path, MIXED)
    with pytest.raises(BackendError, match="cannot run a graph as it is written"):
        open_session(open_artifact(path), PlanOptions(backend="openvino", graph_optimization="none"))
    proto = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Unheard", "a.domain"
    proto.opset_import.append(onnx.helper.make_opsetid("a.domain", 1))
    (tmp_path / "odd.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(BackendError, match="OpenVINO") as caught:
        infer.load(tmp_path / "odd.onnx", backend="openvino")
    assert "Unheard" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closing_and_watching(net: Path) -> None:
    """A closed session says so; its stages can be followed."""
    session = infer.load(net, backend="openvino")
    seen: list[str] = []

    def switch(stage: str) -> str:
        seen.append(stage)
        return "other"

    watched = session.watched(switch)
    np.testing.assert_array_equal(watched.run({"x": X})["logits"], session.run({"x": X})["logits"])
    assert seen == ["compute", "other"]
    assert waterfall(session, {"x": X}, "net").stages_ms["compute"] > 0
    session.close()
    with pytest.raises(SessionClosedError):
        session.run({"x": X})


def test_the_commands_take_a_backend(net: Path) -> None:
    """`infer run --explain` names it; an unknown one is an error that lists them."""
    plan = json.loads(infer_command("run", net, "--explain", "--json", "--backend", "openvino").out)["plan"]
    assert plan["backend"] == "openvino"
    done = infer_command("run", net, "--explain", "--backend", "tvm")
    assert done.code == 1
    assert "there is no backend 'tvm'; choose from onnxruntime, openvino" in done.err


def test_it_is_loaded_when_it_is_needed(net: Path) -> None:
    """Opening an artifact with the first backend does not load the second; and none sends anything home:
    OpenVINO's telemetry is never loaded."""
    program = (
        "import sys, infer\n"
        f"infer.load({str(net)!r}).close()\n"
        "print('openvino' in sys.modules)\n"
        f"infer.load({str(net)!r}, backend='openvino').close()\n"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
    assert load_backend("openvino").device_kinds() == ("cpu",)


def test_it_computes_in_bfloat16_as_the_plan_says(tmp_path: Path) -> None:
    """Products of values with more than eight bits are rounded, where the library does so."""
    text = "g (float[N, 256] x, float[256, 256] w) => (float[N, 256] y) { y = MatMul(x, w) }"
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((64, 256)).astype(np.float32),
        "w": rng.standard_normal((256, 256)).astype(np.float32),
    }
    artifact = open_artifact(write(tmp_path, text))
    with open_session(artifact, PlanOptions(backend="openvino")) as session:
        as_it_is, exact = session.plan, session.run(feeds)["y"]
    rounding = replace(as_it_is, compute_dtype="bfloat16")
    with open_session(artifact, plan=rounding) as session:
        rounded = session.run(feeds)["y"]
    by_rows = replace(as_it_is, larger=replace(rounding, rows_from=65))
    with open_session(artifact, plan=by_rows) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], exact)
        many = session.run({**feeds, "x": np.concatenate([feeds["x"], feeds["x"]])})["y"]
    for answer in (rounded, many[:64], many[64:]):
        off = float(np.abs(answer - exact).max() / np.abs(exact).max())
        assert 1e-4 < off < 2e-2 if openvino_rounds() else off < 1e-5


def test_it_computes_in_eight_bits_what_is_quantized(tmp_path: Path) -> None:
    """Every convolution of a small U-Net, where tensors that meet have the same steps."""
    import openvino as ov

    text = """g (float[B, 3, 16, 16] x) => (float[B, 1, 16, 16] y) {
        a = Conv<pads = [1,1,1,1]>(x, w0, b0) ar = Relu(a)
        p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(ar)
        b = Conv<pads = [1,1,1,1]>(p, w1, b1) br = Relu(b)
        c = Conv<pads = [1,1,1,1]>(br, w2, b2) cr = Relu(c)
        u = ConvTranspose<strides = [2,2]>(cr, w3, b3) d = Concat<axis = 1>(u, ar)
        e = Conv<pads = [1,1,1,1]>(d, w4, b4) er = Relu(e) y = Conv(er, w5, b5)
    }"""
    proto = parse(text, opset=21, ir_version=10)
    rng = np.random.default_rng(0)
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (32, 16, 2, 2), (16, 32, 3, 3), (1, 16, 1, 1)]
    for place, shape in enumerate(shapes):
        outputs = shape[1] if place == 3 else shape[0]
        for name, array in (("w", rng.standard_normal(shape) * 0.2), ("b", rng.standard_normal(outputs))):
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), f"{name}{place}")
            proto.graph.initializer.append(tensor)
    model = loaded(proto)
    feeds = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    result = static.quantize_statically(
        model,
        lambda names: observe(model, names, feeds),
        "extremes",
        pair_bounded=False,
        transposed=True,
        step_by_step=False,
    )
    assert result.rewritten == len(shapes)
    save(model, tmp_path / "unet.onnx")
    graph = ov.Core().read_model(tmp_path / "unet.onnx")
    graph.reshape([1, 3, 16, 16])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        (info["layerType"], info["runtimePrecision"])
        for info in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
    ]
    found = [precision for layer, precision in kinds if layer in ("Convolution", "Deconvolution")]
    assert len(found) == len(shapes)
    assert all(precision == "u8" for precision in found)


def test_what_a_backend_cannot_compute_in_is_refused(net: Path) -> None:
    """Also where a plan is given by hand."""
    for backend, dtype in (("openvino", "float16"), ("onnxruntime", "bfloat16")):
        with infer.load(net, backend=backend) as session:
            plan = replace(session.plan, compute_dtype=dtype)
            with pytest.raises(BackendError, match=f"not in {dtype}"):
                open_session(session.artifact, plan=plan)


PICTURES = "g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Abs(x) }"
TEXTS = "g (float[N, L] x) => (float[N, L] y) { y = Abs(x) }"


@pytest.mark.parametrize(
    ("text", "dtypes"), [(PICTURES, ("bfloat16", FIXED_SHAPES)), (TEXTS, ("bfloat16",))]
)
def test_bfloat16_is_for_processors_that_have_it(
    text: str, dtypes: tuple[str, ...], tmp_path: Path
) -> None:
    """Others would take longer for it; and what is compiled for its shape is pictures."""
    machine, backend = this_machine(), load_backend("openvino")
    signature = open_artifact(write(tmp_path, text)).manifest.signature
    assert backend.compute_dtypes(replace(machine, isa=("avx2", "avx512_vnni")), signature) == ()
    for flag in ("avx512_bf16", "amx_bf16"):
        assert backend.compute_dtypes(replace(machine, isa=("avx2", flag)), signature) == dtypes
    assert load_backend("onnxruntime").compute_dtypes(machine, signature) == ()
