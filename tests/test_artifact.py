"""Writing artifacts whole or not at all, and reading their files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infer import artifact as module
from infer.artifact import MANIFEST, sha256
from infer.drafts import artifact_draft
from infer.errors import ArtifactError
from infer.npz import load_npz, save_npz


def make(path: Path, text: str) -> None:
    with artifact_draft(path, overwrite=True) as draft:
        (draft / MANIFEST).write_text(text)
        (draft / "graphs").mkdir()
        (draft / "graphs" / "a").write_text(text)


def seen(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_the_block_is_done(tmp_path: Path) -> None:
    """Until then nothing stands under its name; afterwards nothing stands beside it."""
    path = tmp_path / "deep" / "net.infer"
    with artifact_draft(path, overwrite=False) as draft:
        (draft / MANIFEST).write_text("new")
        assert not path.exists()
        assert draft.parent == path.parent
    assert (path / MANIFEST).read_text() == "new"
    assert seen(path.parent) == ["net.infer"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """Others may read an artifact as they may read any other new folder of the user."""
    (tmp_path / "ordinary").mkdir()
    make(tmp_path / "net.infer", "x")
    assert (tmp_path / "net.infer").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, kind: type[BaseException], existing: bool
) -> None:
    """Whatever is raised, no draft stays, and an artifact that was there is untouched."""
    path = tmp_path / "net.infer"
    if existing:
        make(path, "old")

    def fail() -> None:
        with artifact_draft(path, overwrite=True) as draft:
            (draft / MANIFEST).write_text("new")
            raise kind("stop")

    with pytest.raises(kind):
        fail()
    assert seen(tmp_path) == (["net.infer"] if existing else [])
    if existing:
        assert (path / MANIFEST).read_text() == "old"


def test_overwriting_keeps_the_old_one_until_the_end(tmp_path: Path) -> None:
    """While the new one is written, the old one is whole; then the new one is, with none of its files."""
    path = tmp_path / "net.infer"
    make(path, "old")
    (path / "graphs" / "b").write_text("only the old one has it")
    with artifact_draft(path, overwrite=True) as draft:
        (draft / MANIFEST).write_text("new")
        assert (path / "graphs" / "a").read_text() == "old"
    assert seen(path) == [MANIFEST]
    assert seen(tmp_path) == ["net.infer"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_replacement_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """If either of the two renames fails, the old artifact stands and no draft does."""
    path = tmp_path / "net.infer"
    make(path, "old")
    rename, calls = Path.rename, 0

    def breaking(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", breaking)
    with pytest.raises(OSError, match="Input/output"):
        make(path, "new")
    assert (path / MANIFEST).read_text() == "old"
    assert seen(tmp_path) == ["net.infer"]


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path) -> None:
    """A file, a folder of other things, and a broken link are refused even with overwrite."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = seen(tmp_path)
    for name in before:
        with pytest.raises(ArtifactError, match="exists and is not an artifact"):
            make(tmp_path / name, "new")
    assert seen(tmp_path) == before
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"


def test_an_artifact_is_replaced_only_on_request(tmp_path: Path) -> None:
    """Without overwrite the error says how to ask for it."""
    make(tmp_path / "net.infer", "old")
    with pytest.raises(ArtifactError, match="replace it with --force"):
        with artifact_draft(tmp_path / "net.infer", overwrite=False):
            raise AssertionError("the block must not run")
    assert (tmp_path / "net.infer" / MANIFEST).read_text() == "old"


def test_a_link_to_an_artifact_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    """Overwriting `current -> v1` makes `current` the new artifact and leaves `v1` alone."""
    make(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    make(tmp_path / "current", "new")
    assert (tmp_path / "current" / MANIFEST).read_text() == "new"
    assert (tmp_path / "v1" / MANIFEST).read_text() == "old"
    assert seen(tmp_path) == ["current", "v1"]


def test_sha256_is_that_of_fips_180(tmp_path: Path) -> None:
    """The standard's vectors for "abc" and for a million "a", which takes several chunks' loop."""
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "many").write_bytes(b"a" * 1_000_000)
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "many") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


@given(
    st.dictionaries(
        st.text("abc_.é ", min_size=1, max_size=8),
        hnp.arrays(
            st.one_of(
                hnp.integer_dtypes(endianness="="),
                hnp.unsigned_integer_dtypes(endianness="="),
                hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
                hnp.boolean_dtypes(),
            ),
            hnp.array_shapes(min_dims=0, min_side=0),
        ),
        max_size=3,
    )
)
def test_npz_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray[object, np.dtype[np.generic]]]
) -> None:
    """Names, dtypes, shapes and bits."""
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    save_npz(path, arrays)
    found = load_npz(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_any_name_of_an_array_survives_npz(tmp_path: Path) -> None:
    """Names that mean something to numpy, to zip files and to folders are names like others."""
    names = ["file", "allow_pickle", "a", "a.npy", "../a", "../a.npy", "/a", "", "é/漢", "a b"]
    arrays = {name: np.array([i]) for i, name in enumerate(names)}
    save_npz(tmp_path / "x.npz", arrays)
    assert {name: array.tolist() for name, array in load_npz(tmp_path / "x.npz").items()} == {
        name: [i] for i, name in enumerate(names)
    }
    with np.load(tmp_path / "x.npz") as read_by_numpy:
        assert read_by_numpy["allow_pickle"].tolist() == [1]
    with pytest.raises(ArtifactError, match="ends at its NUL"):
        save_npz(tmp_path / "x.npz", {"a\0b": np.array([0])})


def test_text_survives_npz(tmp_path: Path) -> None:
    """Object arrays of `str` come back as such, empty and wide ones too, though never pickled."""
    texts = np.array([["", "a"], ["é" * 50, "😀"]], object)
    save_npz(tmp_path / "x.npz", {"t": texts})
    found = load_npz(tmp_path / "x.npz")["t"]
    assert found.dtype == object
    assert found.tolist() == texts.tolist()
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert b"|O" not in archive.read("t.npy")[:128]


def test_files_are_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of a draft is flushed to the disk before the draft takes its name."""
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    make(tmp_path / "net.infer", "x")
    files = [p for p in (tmp_path / "net.infer").rglob("*") if p.is_file()]
    assert len(files) == 2
    assert {p.stat().st_ino for p in files} <= set(synced)
