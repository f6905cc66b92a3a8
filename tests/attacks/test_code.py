"""No file makes infer run code, unless the user named it as Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import converters
import infer
from infer.errors import ConversionError, InferError
from tests.attacks import canary
from tests.command import infer_command

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a canary touches if it is let out."""
    return tmp_path / "mark"


@pytest.mark.parametrize("suffix", canary.PICKLES)
def test_the_canaries_sing(suffix: str, tmp_path: Path, mark: Path) -> None:
    """Each pickle would leave its mark if it were unpickled by an unguarded reader."""
    import numpy as np

    path = tmp_path / f"x{suffix}"
    canary.PICKLES[suffix](path, mark)
    if suffix in (".npy", ".npz"):
        loaded = np.load(path, allow_pickle=True)
        _ = loaded["x"] if suffix == ".npz" else loaded
    elif suffix in (".pkl", ".safetensors"):
        import pickle

        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("suffix", [*canary.PICKLES, ".pt2", ".ts", ".onnx"])
def test_a_pickle_is_not_run_as_source_weights_or_feeds(suffix: str, tmp_path: Path, mark: Path) -> None:
    """Whatever its suffix, it is refused with exit 1, and nothing is written."""
    path = tmp_path / f"evil{suffix}"
    canary.PICKLES.get(suffix, canary.plain_pickle)(path, mark)
    (tmp_path / "net.py").write_text(NET)
    out = tmp_path / "out.infer"
    for arguments in (
        ["convert", path, "-o", out],
        ["convert", f"{tmp_path / 'net.py'}:Net", "--weights", path, "--input", "x=2x1", "-o", out],
        ["convert", f"{tmp_path / 'net.py'}:Net", "--feeds", path, "-o", out],
        ["run", path, "--feeds", path],
        ["inspect", path],
    ):
        outcome = infer_command(*arguments)
        assert (outcome.code, outcome.out) == (1, ""), outcome
        assert outcome.err.splitlines()[-1].startswith("Error: "), outcome.err
        assert "infer itself failed" not in outcome.err
        assert not mark.exists()
        assert not out.exists()
    with pytest.raises(InferError):
        infer.load(path)
    assert not mark.exists()


def test_weights_that_are_a_pickle_are_refused_with_a_cure(tmp_path: Path, mark: Path) -> None:
    """The message says what the file holds, and how to save weights alone."""
    canary.torch_zip(tmp_path / "w.pt", mark)
    (tmp_path / "net.py").write_text(NET)
    outcome = infer_command(
        *("convert", f"{tmp_path / 'net.py'}:Net", "--weights", tmp_path / "w.pt", "--input", "x=2x1"),
        *("-o", tmp_path / "out.infer"),
    )
    assert "reading it would run code" in outcome.err
    assert "safetensors.torch.save_file" in outcome.err


def test_feeds_that_are_pickled_are_not_unpickled(artifact: Path, tmp_path: Path, mark: Path) -> None:
    """`infer run --feeds` and the arrays task refuse an .npz or .npy with objects."""
    for suffix in (".npz", ".npy"):
        path = tmp_path / f"evil{suffix}"
        canary.PICKLES[suffix](path, mark)
        for arguments in (["--feeds", path], [path]):
            outcome = infer_command("run", artifact, *arguments)
            assert outcome.code == 1
            assert str(path) in outcome.err
    assert not mark.exists()


def test_a_pickle_as_golden_point_is_not_unpickled(artifact: Path, warming: Path, mark: Path) -> None:
    """An artifact that brings objects in its golden feeds is refused while it warms up."""
    from tests.tiny import reseal

    canary.object_npz(warming, mark)
    reseal(artifact)
    with pytest.raises(infer.ArtifactError, match="allow_pickle=False"):
        infer.load(artifact)
    assert infer_command("verify", artifact).code == 1
    assert not mark.exists()


@pytest.mark.parametrize("kind", canary.PROGRAMS)
def test_a_program_is_not_run_while_it_is_loaded(kind: str, tmp_path: Path, mark: Path) -> None:
    """Code in a .pt2 file, in whatever of its parts, stays unrun; the file is refused or harmless."""
    path = tmp_path / "evil.pt2"
    canary.PROGRAMS[kind](path, mark)
    if kind == "guard":  # guards are left out, because parity decides
        converters.convert(path, tmp_path / "out.infer")
    else:
        with pytest.raises(ConversionError, match=re.escape(f"'{path}'")):
            converters.convert(path, tmp_path / "out.infer")
        assert not (tmp_path / "out.infer").exists()
    assert not mark.exists()


def test_a_sound_program_is_let_through(tmp_path: Path) -> None:
    """The archive that the canaries are hidden in converts when it holds none."""
    canary.program(tmp_path / "fine.pt2")
    artifact = converters.convert(tmp_path / "fine.pt2", tmp_path / "out.infer")
    assert artifact.manifest.parity is not None
    assert artifact.manifest.parity.passed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_not_unpickled_by_python(tmp_path: Path, mark: Path) -> None:
    """Its data goes through torch's own reader, which knows no Python functions."""
    canary.torchscript(tmp_path / "evil.pt", mark)
    outcome = infer_command("convert", tmp_path / "evil.pt", "-o", tmp_path / "out.infer")
    assert (outcome.code, outcome.out) == (1, "")
    assert "not a TorchScript program" in outcome.err
    assert not mark.exists()


def _model_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_that_a_model_folder_brings_is_not_run(tmp_path: Path, mark: Path) -> None:
    """`auto_map` is refused with a cure, in config.json; the folder's Python is never imported."""
    folder = _model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(canary.code(mark))
    outcome = infer_command("convert", folder, "-o", tmp_path / "out.infer")
    assert outcome.code == 1
    assert "brings its own model code" in outcome.err
    assert not mark.exists()


def test_a_pickle_as_the_weights_of_a_model_folder_is_not_run(tmp_path: Path, mark: Path) -> None:
    """pytorch_model.bin is read without code, or not at all."""
    folder = _model_folder(tmp_path / "model")
    canary.torch_zip(folder / "pytorch_model.bin", mark)
    outcome = infer_command("convert", folder, "-o", tmp_path / "out.infer")
    assert outcome.code == 1
    assert outcome.err.startswith("Error: ")
    assert not mark.exists()


def test_python_that_the_user_named_is_run(tmp_path: Path, mark: Path) -> None:
    """The one exception: `file.py:name` runs that file."""
    (tmp_path / "own.py").write_text(f"{canary.code(mark)}\n{NET}")
    outcome = infer_command(
        "convert", f"{tmp_path / 'own.py'}:Net", "--input", "x=2x1", "-o", tmp_path / "out.infer"
    )
    assert outcome.code == 0
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "[]", "must hold a JSON object, but holds []"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[" * 100_000, "cannot be read as JSON"),
        ("config.json", "{}", "Error: "),
        ("config.json", '{"architectures": ["os"]}', "Error: "),
        ("config.json", '{"architectures": ["pipeline"]}', "Error: "),
        ("modules.json", "{}", "must hold a list of JSON objects"),
        ("modules.json", "[1]", "must hold a list of JSON objects"),
        ("modules.json", '[{"type": "a.Transformer"}]', "lists a module without a path"),
        ("modules.json", '[{"type": "os.system", "path": ""}]', "does not begin with a Transformer"),
    ],
)
def test_a_model_folder_of_odd_json_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    """config.json and modules.json of other shapes end in one paragraph."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_text(content)
    outcome = infer_command("convert", folder, "-o", tmp_path / "out.infer")
    assert (outcome.code, outcome.out) == (1, "")
    assert words in outcome.err
    assert "infer itself failed" not in outcome.err
