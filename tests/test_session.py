"""Sessions: opening, running from several threads, closing, and what a plan says."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import converters
import infer
from infer.backends.ort import OrtExecutable, _options
from infer.options import PlanOptions
from infer.session import Session, open_artifact, open_session
from tests.command import infer_command
from tests.tiny import edit_manifest, reseal

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


class _CountedRuns:
    """A session of ONNX Runtime, how often it computed, and how often in buffers that were bound."""

    def __init__(self, session: Any) -> None:
        self._session, self.plain, self.bound = session, 0, 0
        self.io_binding = session.io_binding

    def run(self, *args: Any) -> Any:
        self.plain += 1
        return self._session.run(*args)

    def run_with_iobinding(self, binding: Any) -> None:
        self.bound += 1
        self._session.run_with_iobinding(binding)


@pytest.fixture
def counted(net: Path) -> Iterator[tuple[Session, _CountedRuns]]:
    with infer.load(net, warm_up=False) as session:
        executable = session._executable
        assert isinstance(executable, OrtExecutable)
        runs = executable._session = _CountedRuns(executable._session)
        yield session, runs


def test_a_graph_is_run_once_for_each_request(
    counted: tuple[Session, _CountedRuns], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where buffers are bound, and where there are more shapes than are remembered."""
    session, runs = counted
    monkeypatch.setattr("infer.backends.ort._MAX_BOUND_S", 60.0)  # none is long
    for _ in range(3):
        for rows in range(1, 41):
            x = np.full((rows, 10), rows, np.float32)
            assert session.run({"x": x})["logits"].shape == (rows, 2)
    assert runs.plain + runs.bound == 3 * 40
    for _ in range(3):
        session.run({"x": np.ones((1, 10), np.float32)})
    assert runs.bound >= 2


def test_long_runs_are_not_bound(
    counted: tuple[Session, _CountedRuns], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be saved, and those of short runs would be forgotten for them."""
    session, runs = counted
    monkeypatch.setattr("infer.backends.ort._MAX_BOUND_S", 0.0)
    x = np.ones((1, 10), np.float32)
    answers = [session.run({"x": x})["logits"] for _ in range(4)]
    assert (runs.plain, runs.bound) == (4, 0)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_some_outputs(net: Path) -> None:
    """`outputs` picks, and an unknown name lists the known ones."""
    with infer.load(net) as session:
        assert list(session.run({"x": X}, ["logits"])) == ["logits"]
        with pytest.raises(infer.FeedError, match="'scores'; the outputs are logits"):
            session.run({"x": X}, ["scores"])


@pytest.mark.parametrize("outputs", [[["logits"]], 5, [{}]])
def test_outputs_that_are_no_names_are_refused(net: Path, outputs: Any) -> None:
    """What cannot be a list of names is a `FeedError`, not a fault of ours."""
    with infer.load(net) as session:
        with pytest.raises(
            infer.FeedError, match=r"outputs must be a list of names, but .* came; .* logits"
        ):
            session.run({"x": X}, outputs)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy])
def test_a_session_is_not_copied(net: Path, take: Callable[[object], object]) -> None:
    """Opening another takes time and memory, and should be seen to; the error says how."""
    with infer.load(net) as session:
        with pytest.raises(infer.InferError, match=r"not copied; .* infer\.load\('.*net\.infer'\)"):
            take(session)


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


FORKED = """
import os, sys, time, infer
session = infer.load(sys.argv[1], num_threads=2)
time.sleep(0.5)  # until its threads wait
if not os.fork():
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX thing")
def test_forked_children_end(net: Path) -> None:
    """As Python does, with all its destructors, which would wait for threads that are not there: a
    service's workers would have to be killed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, net], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "7\n", done.stderr


def test_onnxruntime_has_no_threads_but_those_of_the_plan(net: Path) -> None:
    """Its telemetry, which would be one of them, is off; the environment is as it was."""
    program = (
        f"import os, infer\nwith infer.load({str(net)!r}, num_threads=1):\n"
        "    print(len(os.listdir('/proc/self/task')), 'ORT_DISABLE_TELEMETRY' in os.environ)"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's own
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "1 False\n", done.stderr


def test_plain_onnx_files_run(net: Path) -> None:
    """An .onnx file is welcome where an artifact is."""
    with infer.load(net / "graphs/fp32.onnx") as session, infer.load(net) as original:
        assert session.signature == original.signature
        np.testing.assert_array_equal(session.run({"x": X})["logits"], original.run({"x": X})["logits"])


def test_a_plain_file_has_no_digest(net: Path) -> None:
    """There is no manifest that could be pinned; the error says what to compare instead."""
    artifact = infer.open_artifact(net / "graphs/fp32.onnx")
    assert artifact.path == net / "graphs"
    with pytest.raises(infer.ArtifactError, match=r"fp32\.onnx' is a plain \.onnx file .* sha256"):
        artifact.digest  # noqa: B018


def test_a_suffix_may_be_in_capitals(net: Path, tmp_path: Path) -> None:
    """model.ONNX is an ONNX file."""
    shutil.copy(net / "graphs/fp32.onnx", tmp_path / "model.ONNX")
    infer.load(tmp_path / "model.ONNX").close()


NAMES = [
    "a" * 300,
    "a" * 300 + ".onnx",
    "nul\0",
    "nul\0.onnx",
    "\ud800",
    "\ud800.onnx",
    "loop",
    "loop.onnx",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_of_a_path_gives_another_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names too long, with NUL, of half characters, and links that lead round are an `ArtifactError`."""
    monkeypatch.chdir(tmp_path)
    for link in ("loop", "loop.onnx"):
        Path(link).symlink_to(link)
    with pytest.raises(infer.ArtifactError):
        infer.load(name)


@pytest.mark.parametrize("name", ["manifest.json", "golden/0-feeds.npz", "graphs/fp32.onnx"])
def test_a_file_that_may_not_be_read_is_named(
    net: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system refuses is an `ArtifactError` with its reason, for the artifact and the graph."""
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(infer.ArtifactError, match=f"{name}.*Permission denied"):
        infer.load(net)
    if name.endswith(".onnx"):
        with pytest.raises(infer.ArtifactError, match=f"cannot read .*{name}.*Permission denied"):
            infer.load(net / name)


def test_a_path_that_is_not_utf8_is_refused(net: Path, tmp_path: Path) -> None:
    """ONNX Runtime takes text for a path; the error says that, for load and for convert."""
    odd = tmp_path / os.fsdecode(b"net\xff.infer")
    shutil.copytree(net, odd)
    with pytest.raises(infer.BackendError, match="opens only paths that are UTF-8"):
        infer.load(odd)
    with pytest.raises(infer.ArtifactError, match="is not UTF-8"):
        converters.convert(net / "graphs/fp32.onnx", odd, overwrite=True)


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


def test_damage_is_found_where_it_is_loaded(net: Path, tmp_path: Path) -> None:
    """Graphs that a session does not load are not read: neither for their damage nor for the time that it
    takes. With a shadow, which asks the reference, they are; and so they are by infer verify."""
    path = tmp_path / "copy.infer"
    shutil.copytree(net, path)
    reference = path / "graphs/fp32.onnx"
    shutil.copy(reference, path / "graphs/other.onnx")
    for weights in path.glob("graphs/fp32.onnx.data"):
        shutil.copy(weights, path / "graphs/other.onnx.data")
    other = {"name": "other", "graph": "graphs/other.onnx"}
    edit_manifest(path, lambda data: data["variants"].append({**data["variants"][0], **other}))
    reseal(path)
    reference.write_bytes(reference.read_bytes()[:-1] + b"?")
    with infer.load(path, variant="other") as session:
        assert session.run({"x": X})["logits"].shape == (3, 2)
    for wish in ({}, {"variant": "other", "shadow": infer.ShadowOptions()}):
        with pytest.raises(infer.IntegrityError, match=r"fp32\.onnx' differs from the sha256"):
            infer.load(path, **wish)
    assert infer_command("verify", path).code == 1


def test_cuda_is_a_demand(net: Path) -> None:
    """Asking for a GPU that is not there is an error, never a silent run on the CPU."""
    if infer.this_machine().devices != ("cpu",):
        pytest.skip("this machine has a GPU")
    with pytest.raises(infer.DeviceError, match="'cuda' was asked for, but this machine has only: cpu"):
        infer.load(net, device="cuda")
    with pytest.raises(infer.DeviceError, match="unknown device 'gpu'"):
        infer.load(net, device="gpu")


def test_weights_may_stay_as_they_are(net: Path) -> None:
    """ONNX Runtime is told not to pack them, and answers alike."""
    with (
        open_session(open_artifact(net), PlanOptions(prepacking=False)) as session,
        infer.load(net) as packed,
    ):
        entry = "session.disable_prepacking"
        told = [_options(plan).get_session_config_entry(entry) for plan in (session.plan, packed.plan)]
        assert told == ["1", "0"]
        expected = packed.run({"x": X})["logits"]
        np.testing.assert_allclose(session.run({"x": X})["logits"], expected, rtol=1e-5, atol=1e-6)


def test_threads_follow_the_affinity(net: Path) -> None:
    """The plan's threads are those the process may use, or those asked for; always set."""
    with infer.load(net) as session:
        assert session.plan.num_threads == infer.this_machine().cores
    with infer.load(net, num_threads=1) as session:
        assert session.plan.num_threads == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity")
def test_a_process_that_may_use_one_core_has_one_thread(net: Path) -> None:
    """However many the machine has."""
    code = (
        "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]); import infer;"
        " session = infer.load(sys.argv[1]); print(session.plan.num_threads)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(net)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "1"


def test_nan_by_policy(net: Path) -> None:
    """NaN passes through by default, and is refused with its place on request."""
    rows = X.copy()
    rows[1, 3] = np.nan
    with infer.load(net) as session:
        assert np.isnan(session.run({"x": rows})["logits"][1]).all()
    with infer.load(net, refuse_nan=True) as session:
        with pytest.raises(infer.FeedError, match=r"'x' holds NaN or infinity, first at \[1, 3\]"):
            session.run({"x": rows})
