"""A share of live answers is checked against the reference, and the session falls back if it must."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import infer
from infer.errors import BackendError, InputError
from infer.guard import Feeds
from infer.machine import this_machine
from infer.manifest import Evidence, Speed, Variant
from infer.options import ShadowOptions
from infer.parity import TOLERANCES
from infer.shadow import Shadow, _apart
from infer.signature import Array
from tests import waiting
from tests.serving import serving
from tests.tiny import edit_manifest

until = functools.partial(waiting.until, wait_s=10.0)

EVIDENCE: dict[str, Any] = {
    "changes": {"clip": "1 of 1"},
    "budget": "cosine>=0.999",
    "figures": {"equal": 0.0, "cosine": 0.9999, "min-cosine": 0.999},
    "data": "feeds from -1 to 1",
    "speed": {"against": "fp32", "ratio": 0.5, "low": 0.4, "high": 0.6, "machine": "a machine"},
    "neighbours": 0.0,
    "tolerances": {},
}


@pytest.fixture
def clipped(net: Path, tmp_path: Path) -> Path:
    """`net` with a variant that is right where it was judged, and takes larger numbers for 1."""
    path = tmp_path / "clipped.infer"
    shutil.copytree(net, path)
    model = onnx.load(path / "graphs" / "fp32.onnx")
    for node in model.graph.node:
        node.input[:] = ["narrow" if name == "x" else name for name in node.input]
    low, high = (
        helper.make_node("Constant", [], [name], value_float=value)
        for name, value in (("low", -1.0), ("high", 1.0))
    )
    model.graph.node.insert(0, helper.make_node("Clip", ["x", "low", "high"], ["narrow"]))
    for node in (low, high):
        model.graph.node.insert(0, node)
    onnx.save(model, graph := path / "graphs" / "clip.onnx")
    record = {"sha256": hashlib.sha256(graph.read_bytes()).hexdigest(), "size_bytes": graph.stat().st_size}

    def add(data: Any) -> None:
        first = data["variants"][0]
        data["variants"].append(
            {**first, "name": "clip", "graph": "graphs/clip.onnx", "evidence": EVIDENCE}
        )
        data["files"]["graphs/clip.onnx"] = record

    edit_manifest(path, add)
    return path


def ask(session: infer.Session, scale: float, count: int) -> None:
    """Runs that are all checked, one after another."""
    assert session.shadow is not None
    for seed in range(count):
        before = session.shadow.stats().checked
        x = np.random.default_rng(seed).uniform(-scale, scale, (2, 10)).astype(np.float32)
        session.run({"x": x})
        until(
            lambda before=before: (
                session.shadow is None
                or session.shadow.stats().checked > before
                or bool(session.shadow.stats().fell_back)
            )
        )  # type: ignore[misc]


def test_a_session_falls_back_when_live_data_drifts(
    clipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As judged, its own answers are good and stay; with inputs it was never judged on they are off, and
    from then on the reference answers, which is said."""
    options = ShadowOptions(share=1.0, limit=0.2, window=10)
    x = np.full((1, 10), 3.0, np.float32)
    with infer.load(clipped, variant="fp32") as reference:
        expected = reference.run({"x": x})["logits"]
    with infer.load(clipped, variant="clip", shadow=options, warm_up=False) as session:
        assert session.shadow is not None
        ask(session, 1.0, 20)
        assert session.shadow.stats().off == 0
        assert not np.allclose(session.run({"x": x})["logits"], expected)
        with caplog.at_level(logging.WARNING, logger="infer"):
            ask(session, 10.0, 10)
            until(lambda: bool(caplog.records))
        np.testing.assert_allclose(session.run({"x": x})["logits"], expected, rtol=1e-6)
        stats = session.shadow.stats()
        assert "of the last 10 answers of clip that were checked were too far" in stats.fell_back
        assert stats.fell_back in caplog.text
        assert stats.off >= 3 > 0 == stats.failed
        assert stats.worst > 0.002


def test_sessions_that_share_threads_are_checked_too(clipped: Path) -> None:
    """The reference runs on the same threads then, before and after it answers."""
    program = """
import sys, time, infer, numpy as np
infer.share_threads(2)
options = infer.ShadowOptions(share=1.0, limit=0.2, window=4)
x = np.full((2, 10), 3.0, np.float32)
with infer.load(sys.argv[1], variant="clip", shadow=options) as session:
    end = time.monotonic() + 20
    while not session.shadow.stats().fell_back and time.monotonic() < end:
        session.run({"x": x})
        time.sleep(0.01)
    print(bool(session.shadow.stats().fell_back), session.run({"x": x})["logits"].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, clipped], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    fell_back, answer = done.stdout.split(" ", 1)
    assert fell_back == "True"
    with infer.load(clipped, variant="fp32") as reference:
        expected = reference.run({"x": np.full((2, 10), 3.0, np.float32)})["logits"]
    np.testing.assert_allclose(json.loads(answer), expected, rtol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_closes_a_session_that_was_checked(clipped: Path) -> None:
    """Though the thread that checks, which did not come along, held its queue."""
    with infer.load(clipped, variant="clip", shadow=ShadowOptions(share=1.0)) as session:
        assert session.shadow is not None
        with session.shadow._queue.mutex:
            child = os.fork()
            if not child:
                signal.alarm(10)
                try:
                    session.close()
                    os._exit(0)
                finally:
                    os._exit(1)  # not another pytest
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_ends_after_the_session_fell_back(clipped: Path) -> None:
    """As Python does, with all its destructors: also that of the variant, which has its threads still. The
    shadow is closed first, because a child never lets go of what a thread of the parent's holds."""
    program = """
import os, signal, sys, time, infer, numpy as np
options = infer.ShadowOptions(share=1.0, limit=0.2, window=4)
x = np.full((2, 10), 3.0, np.float32)
session = infer.load(sys.argv[1], variant="clip", num_threads=2, shadow=options)
end = time.monotonic() + 20
while not session.shadow.stats().fell_back and time.monotonic() < end:
    session.run({"x": x})
    time.sleep(0.01)
session.shadow.close()
time.sleep(0.5)  # until its threads wait
if not os.fork():
    signal.alarm(10)
    sys.exit(7)
print(bool(session.shadow.stats().fell_back), os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, clipped], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True 7\n", done.stderr


def test_the_reference_has_no_shadow(net: Path) -> None:
    """It would be compared with itself."""
    with infer.load(net, shadow=ShadowOptions(share=1.0)) as session:
        assert session.shadow is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (ShadowOptions(share=0.0), "share"),
        (ShadowOptions(share=float("nan")), "share"),
        (ShadowOptions(share=1.5), "share"),
        (ShadowOptions(share="1"), "share"),  # type: ignore[arg-type]
        (ShadowOptions(limit=1.0), "limit"),
        (ShadowOptions(limit=-0.1), "limit"),
        (ShadowOptions(window=0), "window"),
        (ShadowOptions(window=2.0), "window"),  # type: ignore[arg-type]
    ],
)
def test_options_that_are_none_are_refused(clipped: Path, options: ShadowOptions, named: str) -> None:
    """By name, before anything runs."""
    with pytest.raises(InputError, match=f"^{named} of a shadow check must"):
        infer.load(clipped, variant="clip", shadow=options)


def test_a_server_s_answers_are_checked(clipped: Path, tmp_path: Path) -> None:
    """`--shadow`: what was found is counted, and when too many were off the reference answers."""
    best = {"machine": this_machine().fingerprint, "device": "cpu", "variant": "clip", "num_threads": 2}
    when = {"runtime": "onnxruntime", "created": "2026-01-01T00:00:00+00:00"}
    edit_manifest(clipped, lambda data: data.update(tuned=[{**best, **when}]))
    large = {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [3.0] * 10}]}

    def figure(name: str) -> float:
        lines = served.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    def asked() -> list[float]:
        data: list[float] = served.post("/v2/models/net/infer", json=large).json()["outputs"][0]["data"]
        return data

    with serving(tmp_path, f"net={clipped}", "--shadow", "1") as served:
        off = asked()
        end = time.monotonic() + 30
        while not figure("infer_shadow_fell_back"):
            asked()
            assert time.monotonic() < end
        assert figure("infer_shadow_checks_total") >= 190  # nearly all of a hundred were off
        assert figure("infer_shadow_worst_distance") > 0.002
        assert not np.allclose(asked(), off)
        (model,) = served.get("/v1/models").json()["data"]
        assert model["plan"]["variant"] == "fp32"


class Held:
    """A reference that answers what it is told to, when it is told to."""

    def __init__(self, answer: Callable[[Feeds], dict[str, Array]]) -> None:
        self._answer, self.go, self.closed = answer, threading.Event(), False
        self.go.set()

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> dict[str, Array]:
        assert self.go.wait(10)
        return self._answer(feeds)

    def watched(self, switch: Any) -> Held:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def feeds_of(x: Array) -> Feeds:
    found = Feeds({"x": x})
    found.shapes = (x.shape,)
    return found


def shadow(
    reference: Held,
    *,
    equal: bool = True,
    farthest: float = 0.999,
    fall_back: Callable[[], None] = lambda: None,
    window: int = 3,
    share: float = 1.0,
) -> Shadow:
    figures = {"equal": float(equal), "cosine": 0.9999, "min-cosine": farthest}
    evidence = Evidence({}, "", figures, "", Speed("fp32", 0.5, 0.4, 0.6, "m"), 0.0)
    variant = Variant("other", "graphs/other.onnx", "int8", 21, 9, evidence)
    options = ShadowOptions(share=share, limit=0.5, window=window)
    return Shadow(lambda _: variant, TOLERANCES, lambda: reference, fall_back, options)


def test_a_caller_may_reuse_its_arrays() -> None:
    """What is checked is what was asked and answered, however late the check is."""
    reference = Held(lambda feeds: {"y": 2 * feeds["x"]})
    reference.go.clear()
    checks = shadow(reference)
    x, y = np.ones((1, 3), np.float32), np.full((1, 3), 2, np.float32)
    checks.offer(feeds_of(x), {"y": y})
    x[:], y[:] = 7, 5
    reference.go.set()
    until(lambda: checks.stats().checked == 1)
    assert checks.stats().off == 0
    checks.close()
    assert reference.closed


def test_checks_that_wait_are_few() -> None:
    """More are skipped, and no caller waits for one."""
    reference = Held(lambda feeds: {"y": feeds["x"]})
    reference.go.clear()
    checks = shadow(reference)
    x = np.ones((1, 3), np.float32)
    for _ in range(50):
        checks.offer(feeds_of(x), {"y": x})
    assert checks.stats().skipped >= 45
    reference.go.set()
    until(lambda: checks.stats().checked + checks.stats().skipped == 50)
    checks.close()


def test_a_share_is_checked() -> None:
    """About one in ten, of a thousand."""
    reference = Held(lambda feeds: {"y": feeds["x"]})
    checks = shadow(reference, share=0.1)
    x = np.ones((1, 3), np.float32)
    for _ in range(1000):
        checks.offer(feeds_of(x), {"y": x})
    until(lambda: 50 <= checks.stats().checked + checks.stats().skipped <= 160)
    checks.close()


@pytest.mark.parametrize(
    ("equal", "error", "off"),
    [(True, 1e-3, True), (True, 1e-7, False), (False, 1e-3, False), (False, 0.2, True)],
)
def test_how_far_an_answer_may_be_depends_on_what_was_proved(equal: bool, error: float, off: bool) -> None:
    """One that was equal must be; one that approximates may be twice as far as it ever was when judged:
    here 1 - cosine of 0.001."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 200)).astype(np.float32)
    reference = Held(lambda feeds: {"y": feeds["x"]})
    checks = shadow(reference, equal=equal)
    checks.offer(feeds_of(x), {"y": x + error * rng.standard_normal(x.shape).astype(np.float32)})
    until(lambda: checks.stats().checked == 1)
    assert checks.stats().off == off
    checks.close()


@pytest.mark.parametrize("bad", [np.full((1, 3), np.nan, np.float32), np.ones((2, 3), np.float32)])
def test_nan_and_other_shapes_are_off(bad: Array) -> None:
    """And as far off as can be."""
    checks = shadow(Held(lambda feeds: {"y": feeds["x"]}), equal=False)
    checks.offer(feeds_of(np.ones((1, 3), np.float32)), {"y": bad})
    until(lambda: checks.stats().off == 1)
    assert checks.stats().worst == 2.0
    checks.close()


@pytest.mark.parametrize("dtype", ["int64", "bool", "object"])
@pytest.mark.parametrize(("wrong", "off"), [(0, False), (1, False), (3, True)])
def test_what_are_no_floats_count_by_the_share_that_is_equal(dtype: str, wrong: int, off: bool) -> None:
    """As in the figures of the evidence: here 0.999 of them are, and twice as many may differ."""
    labels = np.array([f"{n % 2}" for n in range(1000)]) if dtype == "object" else np.arange(1000) % 2
    expected = labels.astype(dtype)[None]
    found = expected.copy()
    found[0, :wrong] = expected[0, 1 : wrong + 1]
    checks = shadow(Held(lambda feeds: {"y": feeds["x"], "label": expected}), equal=False)
    x = np.ones((1, 3), np.float32)
    checks.offer(feeds_of(x), {"y": x, "label": found})
    until(lambda: checks.stats().checked == 1)
    assert checks.stats().off == off
    assert checks.stats().worst == pytest.approx(wrong / 1000)
    checks.close()


def test_labels_of_a_batch_are_judged_together() -> None:
    """One for each row, of which one in a thousand differs."""
    expected = np.arange(1000)
    found = expected.copy()
    found[7] = 3
    checks = shadow(Held(lambda feeds: {"label": expected}), equal=False)
    checks.offer(feeds_of(np.ones((1000, 3), np.float32)), {"label": found})
    until(lambda: checks.stats().checked == 1)
    assert (checks.stats().off, checks.stats().worst) == (0, pytest.approx(0.001))
    checks.close()


def test_another_shape_is_off_however_far_answers_may_be() -> None:
    """Of what is no float, too, and where evidence allows the opposite."""
    checks = shadow(Held(lambda feeds: {"label": np.arange(3)}), equal=False, farthest=-1.0)
    checks.offer(feeds_of(np.ones((1, 3), np.float32)), {"label": np.arange(2)})
    until(lambda: checks.stats().off == 1)
    checks.close()


@pytest.mark.parametrize("error", [BackendError("no"), MemoryError(), ZeroDivisionError()])
def test_a_check_that_fails_decides_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted and said, the thread goes on, and the variant keeps answering."""

    def fail(feeds: Feeds) -> dict[str, Array]:
        if feeds["x"][0, 0] == 0:
            raise error
        return {"y": feeds["x"]}

    checks = shadow(Held(fail))
    for value in (0, 0, 0, 1):
        x = np.full((1, 3), value, np.float32)
        before = checks.stats()
        checks.offer(feeds_of(x), {"y": x})
        until(lambda before=before: checks.stats() != before)  # type: ignore[misc]
    stats = checks.stats()
    assert (stats.failed, stats.checked, stats.off, stats.fell_back) == (3, 1, 0, "")
    assert f"an answer of other could not be checked: {error!r}" in caplog.text
    checks.close()


@pytest.mark.parametrize("error", [BackendError("no memory"), MemoryError()])
def test_a_reference_that_does_not_load_leaves_the_variant(error: Exception) -> None:
    """Falling back is tried again with the next answers."""
    tried = []

    def fall_back() -> None:
        tried.append(len(tried))
        if len(tried) == 1:
            raise error

    checks = shadow(Held(lambda feeds: {"y": -feeds["x"]}), fall_back=fall_back, window=2)
    x = np.ones((1, 3), np.float32)
    for count in (1, 2, 3, 4):
        assert checks.stats().fell_back == ""
        checks.offer(feeds_of(x), {"y": x})
        until(lambda count=count: checks.stats().checked == count)  # type: ignore[misc]
    until(lambda: bool(checks.stats().fell_back))
    assert tried == [0, 1]
    checks.close()
    checks.close()


def test_what_both_leave_out_is_no_distance() -> None:
    """Infinities at the same places, as of masked classes, are not compared; at others they are as far off
    as can be. Rows are judged one by one."""
    expected = np.array([[-np.inf, 1.0, 2.0], [0.5, 1.0, 2.0]], np.float32)
    assert _apart(expected, expected + np.float32(1e-4)) < 1e-6
    other = expected.copy()
    other[0] = [1.0, -np.inf, 2.0]
    assert _apart(expected, other) == 2.0
    turned = np.array([[-np.inf, 1.0, 2.0], [2.0, 1.0, 0.5]], np.float32)
    assert 0.1 < _apart(expected, turned) < 1.0
