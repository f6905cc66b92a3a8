"""Live sessions: a version takes another's place while callers ask, or the other one stays."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.backends.ort import OrtExecutable
from infer.live import _change
from infer.options import BatchOptions
from infer.session import Session
from infer.signature import Range, Signature, TensorSpec
from tests.tiny import classifier, classify, edit_manifest, make_artifact, parse, reseal
from tests.waiting import WAIT_S, until

X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artifacts of one net with other weights."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_artifact(folder / f"v{seed}.infer", classifier(seed)) for seed in SEEDS]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that live ones open."""
    found: list[Session] = []
    original = infer.session.open_session

    def noted(*arguments: Any) -> Session:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr("infer.session.open_session", noted)
    return found


@pytest.fixture
def live(versions: list[Path], opened: list[Session]) -> Iterator[infer.LiveSession]:
    with infer.LiveSession(versions[0]) as found:
        yield found


def _closed(session: Session) -> bool:
    return "closed" in repr(session)


def _is(answer: np.ndarray, seed: int, x: np.ndarray = X) -> bool:
    return bool(np.allclose(answer, classify(classifier(seed), x), atol=1e-5))


def test_it_is_asked_as_a_session_is(live: infer.LiveSession, versions: list[Path]) -> None:
    """Arrays, inputs, futures and coroutines, answered by one version and then by the other."""
    for path, seed in zip(versions, SEEDS, strict=True):
        live.swap(path)
        feeds = {"x": X}
        assert _is(live.run(feeds)["logits"], seed)
        assert _is(live(feeds)["logits"], seed)
        assert _is(live.submit(feeds).result(WAIT_S)["logits"], seed)
        assert _is(asyncio.run(live.arun(feeds))["logits"], seed)
        with live.hold() as session:
            assert (session.artifact, session.plan) == (live.artifact, live.plan)
        assert live.artifact.path == path
        assert live.signature == session.signature


def test_it_takes_what_load_takes() -> None:
    """An option of one that the other lacks would be a surprise."""
    load, live = (inspect.signature(each).parameters for each in (infer.load, infer.LiveSession))
    assert load == live


def test_twenty_swaps_under_the_load_of_eight_threads(
    live: infer.LiveSession, versions: list[Path], opened: list[Session]
) -> None:
    """No call fails, each is answered wholly by one version, and the replaced ones are closed."""
    done, counts = threading.Event(), [0] * 8
    x = np.ascontiguousarray(np.repeat(X, 4, axis=0))
    truth = [classify(classifier(seed), x) for seed in SEEDS]
    seen: list[set[int]] = [set() for _ in counts]

    def ask(number: int) -> None:
        ways: list[Callable[[], list[Any]]] = [
            lambda: [live.run({"x": x})],
            lambda: live([{"x": x}] * 5),  # several runs of one call
            lambda: [live.submit({"x": x}, caller=str(number)).result(WAIT_S)],
        ]
        while not done.is_set():
            answers = ways[counts[number] % 3]()
            found = [
                {v for v in range(2) if np.allclose(answer["logits"], truth[v], atol=1e-5)}
                for answer in answers
            ]
            assert found[0] in ({0}, {1})
            assert all(one == found[0] for one in found), "an answer of two versions"
            seen[number] |= found[0]
            counts[number] += 1

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number) for number in range(8)]
        for turn in range(20):
            live.swap(versions[(turn + 1) % 2])
        done.set()
        for one in asking:
            one.result(WAIT_S)
    assert min(counts) > 3
    assert set.union(*seen) == {0, 1}
    assert len(opened) == 21
    until(lambda: all(map(_closed, opened[:-1])))
    assert not _closed(opened[-1])


def test_a_run_under_way_ends_on_the_old_version(
    live: infer.LiveSession,
    versions: list[Path],
    opened: list[Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`swap` does not wait for it, and the old version is closed when it is done, not before."""
    begun, free = threading.Event(), threading.Event()
    original = OrtExecutable.run
    old = opened[0]._executable

    def slow(self: OrtExecutable, *args: Any) -> dict[str, np.ndarray]:
        if self is old:
            begun.set()
            assert free.wait(WAIT_S)
        return original(self, *args)

    monkeypatch.setattr(OrtExecutable, "run", slow)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(live.run, {"x": X})
        assert begun.wait(WAIT_S)
        live.swap(versions[1])
        assert _is(live.run({"x": X})["logits"], SEEDS[1])
        assert not _closed(opened[0])
        free.set()
        assert _is(under_way.result(WAIT_S)["logits"], SEEDS[0])
    until(lambda: _closed(opened[0]))
    assert opened[0]._executable._session is None  # its memory is given back


def test_requests_that_wait_are_answered_by_the_old_version(
    versions: list[Path], opened: list[Session]
) -> None:
    """They were accepted by it, and closing it would fail them."""
    with infer.LiveSession(versions[0], batching=BatchOptions(max_delay_s=0.2)) as live:
        live.submit({"x": X}).result(WAIT_S)
        waiting = [live.submit({"x": X[:1]}) for _ in range(5)]
        live.swap(versions[1])
        assert all(_is(future.result(WAIT_S)["logits"], SEEDS[0], X[:1]) for future in waiting)
        assert _is(live.submit({"x": X}).result(WAIT_S)["logits"], SEEDS[1])
        until(lambda: _closed(opened[0]))


def test_a_new_version_makes_what_the_old_one_has(
    live: infer.LiveSession, versions: list[Path], opened: list[Session]
) -> None:
    """Its first request would wait for the batcher's proof; who never used one has none."""
    live.swap(versions[1])
    assert opened[1]._batcher is None
    live.submit({"x": X}).result(WAIT_S)
    live.swap(versions[0])
    assert opened[2]._batcher is not None


def _changed_byte(path: Path) -> None:
    graph = _graph(path)
    data = bytearray(graph.read_bytes())
    data[-30] ^= 1
    graph.write_bytes(data)


def _graph(path: Path) -> Path:
    return next((path / "graphs").glob("*.onnx"))


def _cut(path: Path) -> None:
    graph = _graph(path)
    graph.write_bytes(graph.read_bytes()[:100])
    reseal(path)


def _other_weights(path: Path) -> None:
    _graph(path).write_bytes(classifier(9).SerializeToString())
    reseal(path)


def _no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (_changed_byte, infer.IntegrityError, r"\.onnx' differs from the sha256"),
        (_cut, infer.InferError, r"\.onnx"),
        (
            _other_weights,
            infer.ParityError,
            r"v2\.infer' does not answer .*logits.*v7\.infer' goes on serving",
        ),
        (_no_manifest, infer.ArtifactError, "has no manifest"),
        (shutil.rmtree, infer.ArtifactError, "there is no artifact"),
    ],
)
def test_of_a_corrupt_version_the_old_one_stays(
    live: infer.LiveSession,
    versions: list[Path],
    opened: list[Session],
    tmp_path: Path,
    harm: Callable[[Path], None],
    error: type[Exception],
    said: str,
) -> None:
    """It serves as before, the error names what failed, and nothing of the new one stays open."""
    expected = live.run({"x": X})["logits"]
    shutil.copytree(versions[1], tmp_path / "v2.infer")
    harm(tmp_path / "v2.infer")
    with pytest.raises(error, match=said):
        live.swap(tmp_path / "v2.infer")
    np.testing.assert_array_equal(live.run({"x": X})["logits"], expected)
    np.testing.assert_array_equal(live.submit({"x": X}).result(WAIT_S)["logits"], expected)
    assert not _closed(opened[0])
    assert all(map(_closed, opened[1:]))
    live.swap(versions[1])
    assert _is(live.run({"x": X})["logits"], SEEDS[1])


def test_a_version_that_asks_for_other_feeds_is_refused(
    live: infer.LiveSession, opened: list[Session], tmp_path: Path
) -> None:
    """Unless its callers know of it."""
    other = parse("g (float[batch, 10] y) => (float[batch, 10] logits) { logits = Relu(y) }")
    path = make_artifact(tmp_path / "other.infer", other)
    with pytest.raises(infer.ArtifactError, match=r"it has no input 'x: .*allow_change=True"):
        live.swap(path)
    assert len(opened) == 1  # it was not even opened
    assert _is(live.run({"x": X})["logits"], SEEDS[0])
    live.swap(path, allow_change=True)
    np.testing.assert_array_equal(live.run({"y": X})["logits"], np.maximum(X, 0))


def _signature(
    x: str = "float32", dims: Any = ("batch", 10), out: Any = ("batch", 2), **limits: Range
) -> Any:
    return Signature((TensorSpec("x", x, dims),), (TensorSpec("y", "float32", out),), limits)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (_signature(), ""),
        (_signature(dims=("n", 10), out=("n", 2)), ""),
        (_signature(dims=("n", "m"), out=("n", 2)), ""),
        (_signature(batch=Range(1, 16)), ""),
        (_signature(x="int64"), r"its input 'x: int64[batch, 10]' was 'x: float32[batch, 10]'"),
        (_signature(dims=("batch", 10, 1)), "its input 'x: float32[batch, 10, 1]' was"),
        (_signature(dims=("batch", 11)), "its input 'x: float32[batch, 11]' was"),
        (_signature(dims=(8, 10)), "its input 'x: float32[8, 10]' was"),
        (_signature(dims=("n", "n")), "its input 'x: float32[n, n]' was"),
        (_signature(batch=Range(1, 4)), "(batch 1 to 4) was 'x: float32[batch, 10]' (batch 1 to 8)"),
        (_signature(out=("batch", 3)), "its output 'y: float32[batch, 3]' was"),
        (Signature(_signature().inputs, ()), "it has no output 'y: float32[batch, 2]'"),
        (
            Signature((*_signature().inputs, TensorSpec("z", "bool", ())), _signature().outputs),
            "it has another input, 'z: bool[]'",
        ),
    ],
)
def test_what_counts_as_a_change(new: Signature, said: str) -> None:
    """Whatever makes feeds that were taken before be refused, or outputs be other than before."""
    found = _change(_signature(batch=Range(1, 8)), new)
    assert said in found
    assert bool(said) == bool(found)


def test_what_was_closed_stays_closed(versions: list[Path]) -> None:
    """Asking and swapping are errors; closing again is not."""
    live = infer.LiveSession(versions[0])
    live.close()
    live.close()
    for ask in (lambda: live.run({"x": X}), lambda: live.submit({"x": X}), lambda: live.swap(versions[1])):
        with pytest.raises(infer.SessionClosedError, match="closed"):
            ask()


def test_an_option_holds_for_later_versions(versions: list[Path], tmp_path: Path) -> None:
    """A version that cannot be had as the first was is refused."""
    with infer.LiveSession(versions[0], variant="onnx", num_threads=1) as live:
        live.swap(versions[1])
        assert (live.plan.variant, live.plan.num_threads) == ("onnx", 1)
        shutil.copytree(versions[1], tmp_path / "v2.infer")
        edit_manifest(tmp_path / "v2.infer", lambda data: data["variants"][0].update(name="other"))
        with pytest.raises(infer.ArtifactError, match="no variant 'onnx'"):
            live.swap(tmp_path / "v2.infer")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX thing")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(live: infer.LiveSession, versions: list[Path]) -> None:
    """Neither asking nor swapping hangs there."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            for ask in (lambda: live.run({"x": X}), lambda: live.swap(versions[1])):
                try:
                    ask()
                except infer.SessionClosedError as error:
                    os.write(write, f"{error}\n".encode())
            live.close()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read().splitlines()
    os.waitpid(pid, 0)
    assert len(said) == 2
    assert all("after the fork" in line for line in said)
