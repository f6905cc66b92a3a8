"""Sessions: opening, running from several threads, closing, and what a plan says."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import infer
from infer.backends.ort import OrtExecutable

X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)


def test_equals_plain_onnxruntime(net: Path) -> None:
    """A session answers bit for bit what ONNX Runtime answers, on the first run and later ones."""
    plain = onnxruntime.InferenceSession(net / "graphs/fp32.onnx", providers=["CPUExecutionProvider"])
    with infer.load(net) as session:
        for rows in (X, X[:1], X, X * 2, X[:0], X[:0]):
            np.testing.assert_array_equal(
                session.run({"x": rows})["logits"], plain.run(None, {"x": rows})[0]
            )


def test_earlier_answers_stay(net: Path) -> None:
    """Answers belong to the caller: a later run with the same shapes does not change them."""
    with infer.load(net) as session:
        answers = [session.run({"x": X + i})["logits"] for i in range(4)]
        kept = [answer.copy() for answer in answers]
        session.run({"x": X + 9})
        for answer, copy in zip(answers, kept, strict=True):
            np.testing.assert_array_equal(answer, copy)


def test_eight_threads_answer_alike(net: Path) -> None:
    """Eight threads with 200 runs each share one session without a bit of difference."""
    with infer.load(net) as session:
        truth = [session.run({"x": X * i})["logits"] for i in range(8)]

        def work(i: int) -> int:
            return sum(
                not np.array_equal(session.run({"x": X * i})["logits"], truth[i]) for _ in range(200)
            )

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(work, range(8))) == 0


def test_some_outputs(net: Path) -> None:
    """`outputs` picks, and an unknown name lists the known ones."""
    with infer.load(net) as session:
        assert list(session.run({"x": X}, ["logits"])) == ["logits"]
        with pytest.raises(infer.FeedError, match="'scores'; the outputs are logits"):
            session.run({"x": X}, ["scores"])


def test_closed_sessions_say_so(net: Path) -> None:
    """After close, running is an error; closing again is not."""
    session = infer.load(net)
    session.close()
    session.close()
    with pytest.raises(infer.SessionClosedError, match="closed"):
        session.run({"x": X})


def test_close_waits_for_runs_under_way(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() returns only when no thread is inside the backend any more."""
    session = infer.load(net)
    entered, log = threading.Event(), []
    original = OrtExecutable.run

    def slow(self: OrtExecutable, *args: object) -> dict[str, np.ndarray]:
        entered.set()
        time.sleep(0.2)
        result = original(self, *args)  # type: ignore[arg-type]
        log.append("ran")
        return result

    monkeypatch.setattr(OrtExecutable, "run", slow)
    thread = threading.Thread(target=session.run, args=({"x": X},))
    thread.start()
    entered.wait()
    session.close()
    log.append("closed")
    thread.join()
    assert log == ["ran", "closed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX thing")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_are_told(net: Path) -> None:
    """A session used in a forked child is an error that says what to do, instead of a hang."""
    with infer.load(net) as session:
        session.run({"x": X})
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                session.run({"x": X})
                message = "no error"
            except infer.SessionClosedError as error:
                message = str(error)
            os.write(writer, message.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            assert "call infer.load after the fork" in pipe.read()
        os.waitpid(child, 0)


def test_plain_onnx_files_run(net: Path) -> None:
    """An .onnx file is welcome where an artifact is."""
    with infer.load(net / "graphs/fp32.onnx") as session, infer.load(net) as original:
        assert session.signature == original.signature
        np.testing.assert_array_equal(session.run({"x": X})["logits"], original.run({"x": X})["logits"])


def test_tampering_is_found(net: Path, tmp_path: Path) -> None:
    """One changed byte of the same size is refused by name; verify=False is a choice."""
    copy = tmp_path / "copy.infer"
    shutil.copytree(net, copy)
    golden = copy / "golden/1-outputs.npz"
    data = bytearray(golden.read_bytes())
    data[-30] ^= 1
    golden.write_bytes(data)
    with pytest.raises(infer.IntegrityError, match=r"1-outputs\.npz"):
        infer.load(copy)
    infer.load(copy, verify=False).close()


def test_cuda_is_a_demand(net: Path) -> None:
    """Asking for a GPU that is not there is an error, never a silent run on the CPU."""
    if infer.this_machine().devices != ("cpu",):
        pytest.skip("this machine has a GPU")
    with pytest.raises(infer.DeviceError, match="'cuda' was asked for, but this machine has only: cpu"):
        infer.load(net, device="cuda")
    with pytest.raises(infer.DeviceError, match="unknown device 'gpu'"):
        infer.load(net, device="gpu")


def test_threads_follow_the_affinity(net: Path) -> None:
    """The plan's threads are those the process may use, or those asked for; always set."""
    with infer.load(net) as session:
        assert session.plan.num_threads == infer.this_machine().cores
    with infer.load(net, num_threads=1) as session:
        assert session.plan.num_threads == 1


def test_nan_by_policy(net: Path) -> None:
    """NaN passes through by default, and is refused with its place on request."""
    rows = X.copy()
    rows[1, 3] = np.nan
    with infer.load(net) as session:
        assert np.isnan(session.run({"x": rows})["logits"][1]).all()
    with infer.load(net, refuse_nan=True) as session:
        with pytest.raises(infer.FeedError, match=r"'x' holds NaN or infinity, first at \[1, 3\]"):
            session.run({"x": rows})
