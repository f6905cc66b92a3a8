"""The cache of compiled models: what is found in it is what this user put there, whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

import infer
from infer import compiled
from infer.backends import FIXED_SHAPES
from infer.compiled import forget, keep, kept
from infer.options import PlanOptions
from infer.session import Session, open_artifact, open_session
from tests.tiny import parse, write

MODEL = b"compiled"
X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "cache" / "compiled"
    monkeypatch.setattr(compiled, "_folder", lambda: found)
    return found


def test_what_is_kept_is_found_until_it_is_forgotten(folder: Path) -> None:
    """Under its own sha256, in a folder for this user alone; nothing else is left there."""
    name = keep(MODEL)
    assert name is not None
    assert kept(name) == MODEL
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [name]
    forget(name)
    assert kept(name) is None
    forget(name)


def test_what_is_damaged_or_misnamed_is_not_taken(folder: Path, tmp_path: Path) -> None:
    """A changed byte, a name that is a path, and what was never there."""
    name = keep(MODEL)
    assert name is not None
    (folder / name).write_bytes(MODEL[:-1] + b"?")
    assert kept(name) is None
    (tmp_path / "outside").write_bytes(MODEL)
    for path in ("../../outside", str(tmp_path / "outside"), "", ".", name.upper(), name + "\n", "0" * 64):
        assert kept(path) is None


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_not_trusted(folder: Path, mode: int) -> None:
    """Neither read nor written: they could have put a model there."""
    name = keep(MODEL)
    assert name is not None
    folder.chmod(mode)
    assert kept(name) is None
    assert keep(b"another") is None
    folder.chmod(0o700)
    assert kept(name) == MODEL


def test_a_link_to_a_folder_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    """Whoever may enter the folder above could have put it there."""
    name = keep(MODEL)
    assert name is not None
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert kept(name) is None
    assert keep(b"another") is None


def test_the_newest_are_kept(folder: Path) -> None:
    """Sixteen of them, so that the cache does not grow for ever."""
    names = []
    for number in range(18):
        name = keep(bytes([number]))
        assert name is not None
        os.utime(folder / name, ns=(number, number))
        names.append(name)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[2:])


def test_without_a_place_nothing_is_kept(folder: Path) -> None:
    """A cache that cannot be written only costs time."""
    folder.parent.write_text("a file", encoding="utf-8")
    assert keep(MODEL) is None
    assert kept("0" * 64) is None


def opened(path: Path, name: str | None, compute_dtype: str | None = None) -> Session:
    """A session on OpenVINO whose plan names a compiled model."""
    from dataclasses import replace

    artifact = open_artifact(path)
    with open_session(artifact, PlanOptions(backend="openvino")) as session:
        plan = replace(session.plan, compiled=name, compute_dtype=compute_dtype)
    return open_session(artifact, plan=plan)


def was_read(session: Session) -> bool:
    """Whether it had to read the graph."""
    return session._executable._models._model is not None  # type: ignore[attr-defined]


def exported(path: Path, rows: int) -> str:
    from infer.backends.openvino import export
    from infer.guard import Guard

    artifact = open_artifact(path)
    with open_session(artifact, PlanOptions(backend="openvino")) as session:
        feeds = Guard(session.signature).admit({"x": X[:rows]})
        name = keep(export(artifact.file(session.plan.graph), session.plan, feeds, session.signature))
    assert name is not None
    return name


def test_a_compiled_model_answers_in_the_place_of_its_graph(net: Path) -> None:
    """The graph is read only when feeds of another shape come."""
    name = exported(net, 1)
    with infer.load(net, backend="openvino") as before, opened(net, name) as session:
        np.testing.assert_array_equal(
            session.run({"x": X[:1]})["logits"], before.run({"x": X[:1]})["logits"]
        )
        assert not was_read(session)
        np.testing.assert_array_equal(session.run({"x": X})["logits"], before.run({"x": X})["logits"])
        assert was_read(session)


def test_a_compiled_model_for_any_shape(tmp_path: Path) -> None:
    """Where more than one dim is open, one model answers all, without its graph."""
    path = write(tmp_path, "g (float[N, M] x) => (float[N, M] y) { y = Sin(x) }")
    with infer.load(path, backend="openvino") as before, opened(path, exported(path, 2)) as session:
        for rows in (1, 2, 3):
            np.testing.assert_array_equal(
                session.run({"x": X[:rows]})["y"], before.run({"x": X[:rows]})["y"]
            )
        assert not was_read(session)


def test_bfloat16_for_fixed_shapes_takes_none_for_any(tmp_path: Path) -> None:
    """It might have been compiled in bfloat16."""
    path = write(tmp_path, "g (float[N, M] x) => (float[N, M] y) { y = Sin(x) }")
    with opened(path, exported(path, 2), FIXED_SHAPES) as session:
        assert was_read(session)


def test_what_cannot_be_taken_is_compiled_anew(net: Path, tmp_path: Path, folder: Path) -> None:
    """Another model's, bytes that are none, and one that is gone: the answers are the graph's."""
    other = parse("g (float[N, 10] x) => (float[N, 10] logits2) { logits2 = Relu(x) }")
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    wrong = [exported(tmp_path / "other.onnx", 1), keep(MODEL), "0" * 64]
    with infer.load(net, backend="openvino") as before:
        expected = before.run({"x": X})["logits"]
    for name in wrong:
        with opened(net, name) as session:
            np.testing.assert_array_equal(session.run({"x": X})["logits"], expected)
            assert was_read(session)
