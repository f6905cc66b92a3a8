"""Graphs of strangers, opened with `untrusted`: they are tried in a process of their own first."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

import infer
from infer import untrusted
from infer.errors import DeviceError, InferError, InputError, IntegrityError, RehearsalError
from infer.options import PlanOptions, SessionOptions
from infer.planner import make_plan
from infer.session import open_artifact, open_session
from infer.untrusted import RehearsalProcess
from tests.attacks.test_graphs import MODELS, mutate
from tests.command import infer_command
from tests.serving import serving
from tests.tiny import classifier, parse, write
from tests.waiting import until

MIB = 2**20
X = {"x": np.ones((3, 10), np.float32)}


def bomb(values: int = 2**28) -> bytes:
    """60 bytes of a graph whose one constant, float32[values], is computed when it is loaded."""

    def part(field: int, content: bytes) -> bytes:
        return bytes([field << 3 | 2, len(content)]) + content

    varint = b"".join(bytes([values >> 7 * i & 0x7F | 0x80]) for i in range(4)) + bytes([values >> 28])
    node = part(1, b"s") + part(2, b"y") + part(4, b"ConstantOfShape")
    size = b"\x08\x01\x10\x07" + part(7, varint) + part(8, b"s")  # int64[1]
    output = part(1, b"y") + part(2, part(1, b"\x08\x01"))  # float32
    return b"\x08\x08" + part(7, part(1, node) + part(5, size) + part(12, output)) + part(8, b"\x10\x11")


def endless(folder: Path) -> Path:
    """A graph that runs for a thousand years."""
    return write(
        folder,
        "g (float[1] x) => (float[1] y) <int64 n = {4611686018427387904}, bool c = {1}> {"
        " y = Loop (n, c, x) <"
        " body = b (int64 i, bool go, float[1] v) => (bool on, float[1] w)"
        " { on = Identity(go) w = Add(v, v) } > }",
        "endless.onnx",
    )


def convolutions() -> onnx.ModelProto:
    """Convolution, pooling, and a shape that is a constant: [batch, 1, 8, 8] to [batch, 3]."""
    model = parse(
        "g (float[N, 1, 8, 8] x) => (float[N, 3] y) <int64[2] shape = {-1, 36}> {"
        " c = Conv<kernel_shape = [3, 3]>(x, k) p = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(c)"
        " s = Slice(p, first, last) f = Reshape(s, shape) y = MatMul(f, w) }"
    )
    rng = np.random.default_rng(0)
    for name, array in (
        ("k", rng.standard_normal((4, 1, 3, 3)).astype(np.float32)),
        ("w", rng.standard_normal((36, 3)).astype(np.float32)),
        ("first", np.array([0, 0, 0, 0], np.int64)),
        ("last", np.array([2**31, 4, 3, 3], np.int64)),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def attention() -> onnx.ModelProto:
    """Sizes that are computed, a table of integers, and a product of them: int64[N, M] to [N, M, M]."""
    model = parse(
        "g (int64[N, M] ids) => (float[N, M, M] y) <int64[1] minus = {-1}, float scale = {0.1}> {"
        " table = DequantizeLinear(q, scale) e = Gather(table, ids) s = Shape(ids)"
        " t = Concat<axis = 0>(s, minus) r = Reshape(e, t) k = Transpose<perm = [0, 2, 1]>(r)"
        " p = MatMul(r, k) y = Softmax<axis = -1>(p) }"
    )
    values = np.random.default_rng(0).integers(-128, 127, (16, 8), np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "q"))
    return model


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """The processes that a test starts are gone when it ends."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bomb_is_refused_and_takes_nothing_here(
    tmp_path: Path, backend: str, no_process_left: None
) -> None:
    """60 bytes that take 1 GiB at load: a typed error that names file, limit and cure, and this process
    has at most 16 MiB more. ONNX Runtime would go on if the allocation only failed."""
    sound, path = tmp_path / "sound.onnx", tmp_path / "bomb.onnx"
    sound.write_bytes(classifier().SerializeToString())
    path.write_bytes(bomb())
    infer.load(sound, backend=backend, untrusted=True).close()  # what the first one imports is no growth
    process = psutil.Process()
    before = process.memory_info().rss
    with pytest.raises(RehearsalError, match=r"bomb\.onnx' is not trusted.* MiB that it may; .*LoadLimits"):
        infer.load(path, backend=backend, untrusted=True)
    assert process.memory_info().rss - before <= 16 * MIB


def test_what_loads_within_other_limits_is_loaded(tmp_path: Path) -> None:
    """The same graph, with a constant of 16 MiB: within the default, and not within 8 MiB."""
    path = tmp_path / "small.onnx"
    path.write_bytes(bomb(2**22))
    infer.load(path, untrusted=True).close()
    with pytest.raises(RehearsalError, match="more memory than the 8 MiB"):
        infer.load(path, untrusted=infer.LoadLimits(memory_bytes=8 * MIB))


def test_a_graph_that_runs_without_end_is_refused(tmp_path: Path, no_process_left: None) -> None:
    """It is asked once, with feeds that are made up, and ended when its time is over."""
    start = time.monotonic()
    with pytest.raises(RehearsalError, match="longer than the 1 s that it may"):
        infer.load(endless(tmp_path), untrusted=infer.LoadLimits(timeout_s=1.0))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, r"endless\.onnx' .* it crashed \(SIGSEGV\); the file is damaged"),
        (signal.SIGXCPU, "the processor's time than it may"),
        (signal.SIGKILL, "ended by the system"),
    ],
)
def test_a_crash_is_told_and_survived(
    tmp_path: Path,
    number: signal.Signals,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    no_process_left: None,
) -> None:
    """What ends that process does not end this one; the error says which signal it was."""
    started: list[RehearsalProcess] = []

    class Watched(RehearsalProcess):
        def ask(self, *arguments: Any) -> None:
            started.append(self)
            super().ask(*arguments)

    def crash() -> None:
        until(lambda: bool(started))
        os.kill(started[0]._process.pid, number)

    monkeypatch.setattr(untrusted, "RehearsalProcess", Watched)
    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(RehearsalError, match=words):
        infer.load(endless(tmp_path), untrusted=True)
    thread.join()


def test_what_the_backend_says_is_told(tmp_path: Path) -> None:
    """A graph that is refused there is refused here, in the same words, with the name of its own file."""
    model = parse("g (float[N] x) => (float[N] y) { y = Identity(x) }")
    model.graph.node[0].domain = "evil.custom"
    model.opset_import.add(domain="evil.custom", version=1)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RehearsalError, match=r"evil\.custom") as caught:
        infer.load(path, untrusted=True)
    assert f"cannot load '{path}'" in str(caught.value)
    assert "infer-untrusted" not in str(caught.value)


def test_a_sound_artifact_answers_as_before(artifact: Path, no_process_left: None) -> None:
    """Bit by bit, also where several threads open it at once; with a plan for few rows and one for many;
    in a session that other versions take over. No copy stays behind."""
    with infer.load(artifact) as trusted:
        expected = trusted.run(X)["logits"]
    opened = open_artifact(artifact)
    plan = make_plan(opened.manifest, infer.this_machine(), PlanOptions())
    both = replace(plan, larger=replace(plan, num_threads=1, rows_from=2))
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("infer-untrusted-*"))

    def answer(number: int) -> Any:
        if number == 0:
            with open_session(opened, options=SessionOptions(untrusted=True), plan=both) as session:
                return session.run(X)["logits"]
        if number == 1:
            with infer.LiveSession(artifact, untrusted=True) as live:
                live.swap(artifact)
                return live.run(X)["logits"]
        with infer.load(artifact, untrusted=True) as session:
            return session.run(X)["logits"]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(answer, range(4)):
            np.testing.assert_array_equal(found, expected)
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("infer-untrusted-*")) <= before


def test_what_was_tried_is_what_is_loaded(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is replaced after it was tried is not loaded; one that is damaged before is refused,
    whether or not files are verified."""
    graph = next((artifact / "graphs").glob("*.onnx"))

    class Swapping(RehearsalProcess):
        def ask(self, *arguments: Any) -> None:
            super().ask(*arguments)
            other = classifier(seed=8).SerializeToString()
            assert len(other) == graph.stat().st_size
            graph.write_bytes(other)

    with infer.load(artifact) as trusted:
        expected = trusted.run(X)["logits"]
    with monkeypatch.context() as patched:
        patched.setattr(untrusted, "RehearsalProcess", Swapping)
        with infer.load(artifact, verify=False, untrusted=True) as session:
            np.testing.assert_array_equal(session.run(X)["logits"], expected)
    with pytest.raises(IntegrityError, match="damaged or changed"):
        infer.load(artifact, verify=False, untrusted=True)


def test_it_gets_nothing_of_this_process(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variables of the environment but those that libraries are found by, no modules from the folder
    at hand or the artifact's, no files to write, and no processor before others."""
    for name in ("numpy.py", "json.py", "infer.py"):
        (tmp_path / name).write_text("raise SystemExit('code of a stranger')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_TOKEN", "xyzzy")
    infer.load(artifact, untrusted=True).close()
    folder = tmp_path / "empty"
    folder.mkdir()
    with RehearsalProcess(folder, ["onnxruntime"]) as process:
        there = psutil.Process(process._process.pid)
        assert "SECRET_TOKEN" not in there.environ()
        assert there.nice() >= 10
        for limit in (psutil.RLIMIT_FSIZE, psutil.RLIMIT_CORE):
            assert there.rlimit(limit) == (0, 0)


def full(path: Path, mode: str = "r", opened: Any = Path.open) -> Any:
    """`Path.open` on a disk that has no room for new files."""
    return opened(Path("/dev/full"), "wb", 0) if mode == "xb" else opened(path, mode)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("sys.executable", "/bin/false", r"net\.infer' is not trusted .* could not be given one"),
        ("sys.executable", "/nowhere/python", r"net\.infer' is not trusted .* could not be given one"),
        ("tempfile.tempdir", "/nowhere", "no folder for copies"),
        ("pathlib.Path.open", full, "No space left on device; let TMPDIR be"),
    ],
)
def test_nothing_is_loaded_where_nothing_can_be_tried(
    artifact: Path, place: str, value: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process that starts, no folder, no room on the disk: an error, never a trial left out."""
    opened = open_artifact(artifact)
    monkeypatch.setattr(place, value)
    with pytest.raises(RehearsalError, match=words):
        open_session(opened, options=SessionOptions(verify=False, untrusted=True))


def test_limits_that_are_none_are_refused(artifact: Path) -> None:
    """By name and value, before a process is started; so is a device whose memory has no limit."""
    for wrong in ("yes", 1, infer.LoadLimits(memory_bytes=0), infer.LoadLimits(timeout_s=float("nan"))):
        with pytest.raises(InputError, match="must be"):
            infer.load(artifact, untrusted=wrong)  # type: ignore[arg-type]
    opened = open_artifact(artifact)
    plan = make_plan(opened.manifest, infer.this_machine(), PlanOptions())
    with pytest.raises(DeviceError, match="device='cpu'"):
        open_session(opened, options=SessionOptions(untrusted=True), plan=replace(plan, device="cuda:0"))


def test_a_larger_file_than_memory_is_not_copied(tmp_path: Path) -> None:
    """A hole of a terabyte takes no place on the disk, and its copy would."""
    model = parse("g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    weight = model.graph.initializer.add(name="w", data_type=1, dims=[4], data_location=1)
    weight.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RehearsalError, match="more than the memory of this machine"):
        infer.load(tmp_path / "m.onnx", untrusted=True)


def test_the_commands_take_the_flag(artifact: Path, tmp_path: Path) -> None:
    """`infer run`, `verify` and `bench` with --untrusted answer a sound artifact; a bomb is exit code 1."""
    np.savez(tmp_path / "x.npz", **X)
    (tmp_path / "bomb.onnx").write_bytes(bomb())
    done = infer_command("run", artifact, "--untrusted", "--feeds", tmp_path / "x.npz", "--json")
    assert done.code == 0, done.err
    assert infer_command("verify", artifact, "--untrusted").code == 0
    asked = ("--seconds", "0.2", "--no-limits", "--untrusted")
    assert infer_command("bench", artifact, *asked).code == 0
    np.savez(tmp_path / "none.npz")
    for command in (
        ("run", tmp_path / "bomb.onnx", "--untrusted", "--feeds", tmp_path / "none.npz"),
        ("bench", tmp_path / "bomb.onnx", *asked),
    ):
        refused = infer_command(*command)
        assert refused.code == 1
        assert "not trusted and was not loaded" in refused.err


@pytest.mark.slow
def test_a_server_takes_the_flag(artifact: Path, tmp_path: Path) -> None:
    """Each of two workers tries what it loads: a sound model answers, and a bomb is unavailable."""
    (tmp_path / "bomb.onnx").write_bytes(bomb())
    asked = {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [0.0] * 10}]}
    options = ("--untrusted", "--lazy", "--workers", "2")
    with serving(tmp_path, artifact, "bomb.onnx", *options) as served:
        for _ in range(4):
            assert served.post("/v2/models/net/infer", json=asked).status_code == 200
            assert served.post("/v2/models/bomb/infer", json={"inputs": []}).status_code == 503
        assert served.stop() == 0
    assert "MiB that it may" in served.log.read_text(encoding="utf-8")


def distort(raw: bytes, rng: random.Random) -> bytes:
    """The model with another operator, edge, number, size, type or weight: sound as a file only."""
    model = onnx.ModelProto.FromString(raw)
    graph = model.graph
    numbers = (-(2**63), -(2**31), -1, 0, 1, 3, 7, 2**16, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
    for _ in range(rng.randint(1, 3)):
        node, kind = rng.choice(graph.node), rng.randrange(6)
        weight = rng.choice(graph.initializer) if graph.initializer else None
        if kind == 0:
            node.op_type = rng.choice([*OPERATORS, *(other.op_type for other in graph.node)])
        elif kind == 1 and node.input:
            names = [name for other in graph.node for name in (*other.input, *other.output)]
            node.input[rng.randrange(len(node.input))] = rng.choice(["", *names])
        elif kind == 2:
            name = rng.choice(["axis", "perm", "pads", "kernel_shape", "strides", "group", "to", "axes"])
            value = [rng.choice(numbers) for _ in range(rng.randint(1, 4))]
            for attribute in [each for each in node.attribute if each.name == name]:
                node.attribute.remove(attribute)
            single = name in ("axis", "group", "to")
            node.attribute.append(onnx.helper.make_attribute(name, value[0] if single else value))
        elif kind == 3 and weight is not None:
            weight.dims[:] = [rng.choice(numbers) for _ in weight.dims]
        elif kind == 4 and weight is not None:
            weight.data_type = rng.randrange(1, 24)
        elif weight is not None and weight.raw_data:
            weight.raw_data = rng.randbytes(len(weight.raw_data))
        else:
            del graph.node[rng.randrange(len(graph.node)) :]
            graph.node.append(node)
    return model.SerializeToString()


OPERATORS = (
    *("Reshape", "Expand", "Tile", "Pad", "Resize", "Concat", "Split", "Range", "OneHot", "ScatterND"),
    *(
        "ConstantOfShape",
        "NonZero",
        "TopK",
        "Einsum",
        "GRU",
        "Conv",
        "ConvTranspose",
        "QLinearConv",
        "Loop",
    ),
)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("damage", [mutate, distort])
def test_damaged_graphs_never_harm_who_loads_them(
    tmp_path: Path,
    damage: Callable[[bytes, random.Random], bytes],
    monkeypatch: pytest.MonkeyPatch,
    no_process_left: None,
) -> None:
    """500 seeded mutations of 5 models, of their bytes and of their structure: each is loaded or is an
    `InferError`, and this process lives.

    One process tries many of them in turn, and another takes its place when it dies: starting one for each
    would take minutes.
    """
    folder = tmp_path / "empty"
    folder.mkdir()
    kept: list[RehearsalProcess] = []

    @contextlib.contextmanager
    def shared(*_: object) -> Iterator[RehearsalProcess]:
        if not kept or not kept[-1].alive:
            kept.append(RehearsalProcess(folder, ["onnxruntime"]))
        yield kept[-1]

    monkeypatch.setattr(untrusted, "RehearsalProcess", shared)
    outcomes: Counter[str] = Counter()
    limits = infer.LoadLimits(timeout_s=5.0)
    path = tmp_path / "m.onnx"
    try:
        for number, make in enumerate((*MODELS, convolutions, attention)):
            raw, rng = make().SerializeToString(), random.Random(number)
            path.write_bytes(raw)
            infer.load(path, num_threads=1, untrusted=limits).close()
            for _ in range(500):
                path.write_bytes(damage(raw, rng))
                try:
                    infer.load(path, num_threads=1, untrusted=limits).close()
                    outcomes["loaded"] += 1
                except InferError as error:
                    outcomes[type(error).__name__] += 1
    finally:
        for process in kept:
            process.close()
    print(dict(outcomes), f"{len(kept)} processes")
    assert sum(outcomes.values()) == 5 * 500
    assert outcomes["loaded"] > 100  # so that they are not all of one kind
    assert outcomes["RehearsalError"] > 50
