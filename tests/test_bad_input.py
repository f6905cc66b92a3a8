"""What users get wrong, through the command line: exit code, one clear paragraph, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import infer
from infer.npz import save_npz
from tests.command import Outcome, infer_command
from tests.tiny import classifier, edit_manifest, make_artifact, reseal

SOURCE = """
import torch, sys, time
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return x * 2

class Sized(nn.Module):
    def __init__(self, size, depth):
        super().__init__()

def broken():
    raise ValueError("no weights\\nat hand")

def leaves():
    sys.exit(3)

def number():
    return 5

class Falls(nn.Module):
    def forward(self, x):
        raise RuntimeError("shapes do not match")

def no_example():
    return Net(), 5

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(2)
    def forward(self, x):
        return self.fc(x)

class Keys(nn.Module):
    def forward(self, x):
        return {1: x * 2, "1": x * 3}

def slow():
    open("started", "w").close()
    time.sleep(60)

constant = 5
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact") / "net.infer")


@pytest.fixture
def here(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with net.infer, net.onnx, source.py and a few files that are not what they seem."""
    shutil.copytree(whole, tmp_path / "net.infer")
    (tmp_path / "net.onnx").write_bytes(classifier().SerializeToString())
    (tmp_path / "cut.onnx").write_bytes(classifier().SerializeToString()[:-40])
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "bad_syntax.py").write_text("def net(:\n")
    (tmp_path / "needs.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "folder").mkdir()
    save_npz(tmp_path / "x.npz", {"x": np.ones((1, 10), np.float32)})
    save_npz(tmp_path / "wide.npz", {"x": np.ones((1, 11), np.float32)})
    save_npz(tmp_path / "double.npz", {"x": np.ones((1, 10))})
    save_npz(tmp_path / "named.npz", {"y": np.ones((1, 10), np.float32)})
    (tmp_path / "task.json").write_text('{"name": "no-such-task"}')
    for name, changes in {
        "nan": {"top_k": float("nan")},
        "output": {"output": "scores"},
        "input": {"input": "rows"},
        "labels": {"labels": ["a", "b", "c"]},
        "act": {"activation": "tanh"},
    }.items():
        spec = {"input": "x", "output": "logits", "columns": [{"name": f"c{i}"} for i in range(10)]}
        task = {"name": "tabular-classification", "spec": {**spec, **changes}}
        (tmp_path / f"{name}.json").write_text(json.dumps(task))
    (tmp_path / "large.json").write_text('{"name": "tensors", "spec": {"a": 1e999}}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, int]:
    """All files by path and size, without what Python caches."""
    return {
        str(p.relative_to(folder)): p.stat().st_size if p.is_file() else -1
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts
    }


def check(outcome: Outcome, code: int, *words: str) -> None:
    """The exit code; one paragraph that holds all `words`; no traceback; nothing on stdout."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    last = outcome.err.rstrip("\n").splitlines()[-1]
    assert last.startswith("Error: "), outcome.err
    assert "Traceback" not in outcome.err
    assert "infer itself failed" not in outcome.err
    for word in words:
        assert word in last, last


CONVERT: dict[str, tuple[str, tuple[str, ...]]] = {
    # what is wrong: (the arguments of convert, words of the message: the thing and the cure)
    "no such source": ("nowhere.py:Net", ("there is no file 'nowhere.py'", "check the path")),
    "no such graph": ("nowhere.onnx", ("there is no file 'nowhere.onnx'",)),
    "no such program": ("nowhere.pt2", ("there is no file 'nowhere.pt2'",)),
    "no such script": ("nowhere.pt", ("there is no file 'nowhere.pt'",)),
    "no such anything": ("nowhere", ("there is no 'nowhere'", "a source is file.py:name")),
    "empty graph": ("empty.onnx", ("'empty.onnx' is empty",)),
    "empty script": ("empty.pt", ("'empty.pt' is not a TorchScript program", "--weights empty.pt")),
    "truncated graph": ("cut.onnx", ("'cut.onnx' is not an ONNX model, or is damaged", "export it again")),
    "wrong extension": ("notes.txt", ("cannot tell what 'notes.txt' is",)),
    "no model": ("folder", ("'folder' is not a model folder", "config.json")),
    "an artifact": ("net.infer", ("is an artifact already",)),
    "no name": ("source.py", ("say which name", "source.py:NAME")),
    "unknown name": ("source.py:Nett", ("has no 'Nett'", "Net, Sized")),
    "needs arguments": ("source.py:Sized", ("needs arguments (size, depth)", "a function that returns")),
    "raises": ("source.py:broken", ("raised ValueError: no weights at hand", "source.py:14")),
    "exits": ("source.py:leaves", ("raised SystemExit: 3",)),
    "returns no model": ("source.py:number", ("returned a int", "must return a torch.nn.Module")),
    "no model at all": ("source.py:constant", ("is a int",)),
    "forward fails": ("source.py:Falls --input x=2x2", ("RuntimeError: shapes do not", "x: float32[2, 2]")),
    "syntax error": ("bad_syntax.py:net", ("raised SyntaxError",)),
    "missing import": ("needs.py:net", ("No module named 'a_package_nobody_has'", "install what it needs")),
    "missing module": ("no_such_package.models:Net", ("cannot import 'no_such_package.models'",)),
    "a builtin": ("builtins:dict", ("returned a dict",)),
    "no example": ("source.py:no_example", ("example inputs of source.py:no_example are a int", "a dict")),
    "lazy weights": ("source.py:Lazy --input x=2x2", ("shape yet (fc.weight, fc.bias)", "--weights")),
    "keys alike": ("source.py:Keys --input x=2x2", ("keys are the same as text (1, '1')", "other keys")),
    "no inputs": ("source.py:Net", ("needs example inputs", "--input x=")),
    "unknown input": ("source.py:Net --input y=2x2", ("'y'",)),
    "unknown dynamic": ("source.py:Net --input x=2x2 --dynamic y:0=n", ("'y'", "the inputs are x")),
    "axis out of range": ("source.py:Net --input x=2x2 --dynamic x:5=n", ("axis 5", "only 2 axes")),
    "no weights": ("source.py:Net --input x=2 --weights w.pt", ("there is no weights file 'w.pt'",)),
    "empty weights": ("source.py:Net --input x=2 --weights empty.pt", ("'empty.pt' is not a weights",)),
    "other weights": ("source.py:Net --input x=2 --weights notes.txt", ("'notes.txt'",)),
    "no feeds": ("source.py:Net --feeds no.npz", ("there is no file 'no.npz'",)),
    "feeds no npz": ("source.py:Net --feeds notes.txt", ("'notes.txt' is not a readable .npz",)),
    "no task": ("source.py:Net --task no.json", ("there is no file 'no.json'",)),
    "unknown task": ("source.py:Net --task task.json", ("'no-such-task'", "text-classification")),
    "broken task": ("source.py:Net --task broken.json", ("'broken.json' is not a task", "expected JSON")),
    "bottomless task": ("source.py:Net --task deep.json", ("'deep.json' is not a task",)),
    "task with NaN": ("source.py:Net --task nan.json", ("'nan.json' is not a task: NaN is not JSON",)),
    "task with 1e999": ("source.py:Net --task large.json", ("'large.json' is not a task", "Out of range")),
    "task names no output": ("net.onnx --task output.json", ("'scores', which the graph lacks; it has",)),
    "task names no input": ("net.onnx --task input.json", ("'rows', which the graph lacks; it takes x",)),
    "task with few labels": ("net.onnx --task labels.json", ("has 3 labels, but the model gives 2",)),
    "task with no such activation": ("net.onnx --task act.json", ("unknown activation 'tanh'",)),
    "weights of a graph": ("net.onnx --weights w.pt", ("an ONNX file brings its own weights",)),
    "no task file": ("source.py:Net --file tokenizer.json", ("there is no file 'tokenizer.json'",)),
    "output is a folder": ("net.onnx -o folder", ("'folder' exists and is not an artifact",)),
    "output is a file": ("net.onnx -o notes.txt --force", ("'notes.txt' exists and is not",)),
    "output exists": ("net.onnx -o net.infer", ("'net.infer' exists", "--force")),
    "output below a file": ("net.onnx -o notes.txt/out", ("notes.txt",)),
    "output name too long": (f"net.onnx -o {'a' * 300}", ("File name too long",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERT)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_convert_says_what_is_wrong_and_leaves_nothing(here: Path, case: str, as_json: bool) -> None:
    """Exit 1, the paragraph names thing and cure, and the folder is as it was."""
    line, words = CONVERT[case]
    before = tree(here)
    extra = ([] if "-o" in line else ["-o", "out.infer"]) + (["--json"] if as_json else [])
    check(infer_command("convert", *line.split(), *extra), 1, *words)
    assert tree(here) == before


USAGE: dict[str, tuple[str, str]] = {
    "no command": ("", "Usage: infer"),
    "unknown command": ("predict", "No such command 'predict'"),
    "unknown option": ("run net.infer --fast", "No such option"),
    "no output": ("convert net.onnx", "Missing option '-o'"),
    "no source": ("convert -o x", "Missing argument 'SOURCE'"),
    "input": ("convert source.py:Net -o x --input x", "is not NAME=SHAPE"),
    "input shape": ("convert source.py:Net -o x --input x=2x-3", "is not NAME=SHAPE"),
    "input dtype": ("convert source.py:Net -o x --input x=2:float8", "unknown dtype 'float8'; use one of"),
    "input string": ("convert source.py:Net -o x --input x=2:string", "unknown dtype 'string'"),
    "input range": ("convert source.py:Net -o x --input x=2:int8:0..300", "within -128..127 of int8"),
    "input falling": ("convert source.py:Net -o x --input x=2:int64:5..1", "LOW..HIGH must rise"),
    "input huge": ("convert source.py:Net -o x --input x=99999999x99999999", "elements"),
    "input twice": ("convert source.py:Net -o x --input x=2 --input x=3", "names 'x' twice"),
    "dynamic": ("convert source.py:Net -o x --input x=2 --dynamic x", "is not NAME:AXIS=DIM"),
    "dynamic axis": ("convert source.py:Net -o x --input x=2 --dynamic x:one=n", "is not NAME:AXIS=DIM"),
    "dynamic dim": ("convert source.py:Net -o x --input x=2 --dynamic x:0=2", "is not NAME:AXIS=DIM"),
    "threads": ("run net.infer --threads 0", "'--threads'"),
    "threads of no machine": ("run net.infer --threads 99999999999999", "'--threads'"),
    "feeds and files": ("run net.infer x.npz --feeds x.npz", "not both"),
    "output of no kind": ("run net.infer --feeds x.npz -o y.txt", "is neither .json nor .npz"),
    "one .npz of two": ("run net.infer x.npz x.npz -o y.npz", "the outputs for one .npz file"),
    "one .npz of text": ("run net.infer x.npz --text a -o y.npz", "the outputs for one .npz file"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_exit_2(here: Path, case: str) -> None:
    """The message is on stderr, stdout stays empty, and nothing is written."""
    line, words = USAGE[case]
    before = tree(here)
    outcome = infer_command(*line.split())
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert tree(here) == before


RUN: dict[str, tuple[str, tuple[str, ...]]] = {
    "no artifact": ("run no.infer --feeds x.npz", ("there is no artifact at 'no.infer'", "check the path")),
    "a file": ("run notes.txt --feeds x.npz", ("'notes.txt' is a file, but an artifact is a folder",)),
    "no manifest": ("run folder --feeds x.npz", ("'folder' has no manifest.json", "infer convert")),
    "no graph": ("run no.onnx --feeds x.npz", ("there is no file 'no.onnx'",)),
    "cut graph": ("run cut.onnx --feeds x.npz", ("'cut.onnx' is not an ONNX model",)),
    "no feeds": ("run net.infer --feeds no.npz", ("there is no file 'no.npz'", "check the path")),
    "not feeds": ("run net.infer --feeds notes.txt", ("'notes.txt' is not a readable .npz",)),
    "wrong size": ("run net.infer --feeds wide.npz", ("'x' must have shape [batch, 10]", "[1, 11] came")),
    "wrong dtype": ("run net.infer --feeds double.npz", ("must be float32, but float64 came", "astype")),
    "wrong name": ("run net.infer --feeds named.npz", ("lack 'x' and have unknown 'y'", "x: float32")),
    "text": ("run net.infer --text hello", ("cannot take text", "--feeds x.npz")),
    "wrong file": ("run net.infer notes.txt", ("'notes.txt' is not an .npz file", "named x")),
    "absent file": ("run net.infer no.npz", ("no.npz",)),
    "no cuda": ("run net.infer --feeds x.npz --device cuda", ("'cuda' was asked for", "infer doctor")),
    "no such gpu": ("run net.infer --explain --device cuda:7", ("'cuda:7' was asked for",)),
    "unknown device": ("run net.infer --explain --device tpu", ("unknown device 'tpu'; use auto",)),
    "unknown variant": ("run net.infer --explain --variant int8", ("no variant 'int8'; it has: onnx",)),
    "output folder": ("run net.infer --feeds x.npz -o folder", ("'folder': it is a folder",)),
    "no output folder": ("run net.infer --feeds x.npz -o no/y.npz", ("there is no folder 'no'",)),
    "verify a graph": ("verify net.onnx", ("'net.onnx' is a file, but an artifact is a folder",)),
    "verify nothing": ("verify no.infer", ("there is no artifact at 'no.infer'",)),
    "verify no cuda": ("verify net.infer --device cuda", ("'cuda' was asked for",)),
    "inspect nothing": ("inspect no.infer", ("there is no artifact",)),
    "inspect text": ("inspect notes.txt", ("is a file, but an artifact is a folder",)),
}  # fmt: skip


@pytest.mark.parametrize("case", RUN)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_the_other_commands_say_what_is_wrong(here: Path, case: str, as_json: bool) -> None:
    """Exit 1, a paragraph with the thing and the cure, an empty stdout, nothing written."""
    if "cuda" in case and any(device.startswith("cuda") for device in infer.this_machine().devices):
        pytest.skip("this machine has a GPU")
    line, words = RUN[case]
    before = tree(here)
    outcome = infer_command(*line.split(), *(["--json"] if as_json else []))
    if case == "verify no cuda":
        outcome = Outcome(outcome.code, outcome.out, outcome.err.splitlines()[-1])
    check(outcome, 1, *words)
    assert tree(here) == before


@pytest.mark.parametrize(
    "line",
    [
        "run net.infer --feeds notes.txt",
        "run net.infer notes.txt",
        "run notes.txt",
        "inspect notes.txt",
        "verify notes.txt",
        "convert cut.onnx -o out.infer",
        "convert source.py:Net --weights notes.txt --input x=2 -o out.infer",
    ],
)
def test_a_file_that_may_not_be_read_is_no_wrong_usage(
    here: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 like any other file that cannot be used, whichever option named it."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may read all
    check(infer_command(*line.split()), 1)


def test_empty_stdin_is_nothing_to_answer(here: Path) -> None:
    """No lines, or blank ones."""
    edit_manifest(here / "net.infer", _tabular)
    for stdin in (b"", b"\n \n"):
        check(infer_command("run", "net.infer", stdin=stdin), 1, "the input is empty")
    check(infer_command("run", "net.infer", stdin=b"\xff\xfe\n"), 1, "stdin is not UTF-8")


def _tabular(data: dict[str, object]) -> None:
    columns = [{"name": f"c{i}"} for i in range(10)]
    spec = {"input": "x", "output": "logits", "columns": columns, "labels": ["no", "yes"]}
    data["task"] = {"name": "tabular-classification", "spec": spec}


TASKS: dict[str, tuple[Callable[[dict[str, object]], None], str, bytes, tuple[str, ...]]] = {
    "no csv": (_tabular, "no.csv", b"", ("there is no file 'no.csv'",)),
    "empty csv": (_tabular, "x.csv", b"", ("'x.csv' is empty", "c0, c1")),
    "binary csv": (_tabular, "x.csv", b"\xff\xfe\x00", ("'x.csv' is not a UTF-8 CSV",)),
    "few columns": (_tabular, "x.csv", b"1,2,3\n", ("row 1 has 3 values, but the model takes 10",)),
    "ragged csv": (_tabular, "x.csv", b"c0,c1\n1\n", ("row 1 of 'x.csv' has 1 fields",)),
    "missing column": (_tabular, "x.csv", b"c0,c1\n1,2\n", ("row 1 lacks 'c2'",)),
    "a word": (_tabular, "x.csv", b"1,2,3,4,five,6,7,8,9,10\n", ("column 'c4' must be a finite", "'five'")),
    "infinite": (_tabular, "x.csv", b"1,2,3,4,inf,6,7,8,9,10\n", ("column 'c4' must be a finite",)),
    "header only": (_tabular, "x.csv", b"c0,c1,c2,c3,c4,c5,c6,c7,c8,c9\n", ("nothing to answer",)),
}


@pytest.mark.parametrize("case", TASKS)
def test_a_file_a_task_cannot_read_is_named(here: Path, case: str) -> None:
    """Rows that are absent, empty, damaged or of the wrong kind."""
    edit, name, content, words = TASKS[case]
    edit_manifest(here / "net.infer", edit)
    if content or "empty" in case:
        (here / name).write_bytes(content)
    check(infer_command("run", "net.infer", name), 1, *words)


def test_a_damaged_artifact_is_named_by_its_file(here: Path) -> None:
    """Truncated, changed, missing and of another version; also when only its plan is asked for."""
    graph = here / "net.infer" / "graphs" / "net.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    check(
        infer_command("run", "net.infer", "--feeds", "x.npz"),
        1,
        "graphs/net.onnx",
        "truncated or was changed",
    )
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    check(infer_command("run", "net.infer", "--feeds", "x.npz"), 1, "graphs/net.onnx", "sha256")
    graph.unlink()
    check(
        infer_command("run", "net.infer", "--feeds", "x.npz"), 1, "graphs/net.onnx", "copy the whole folder"
    )
    graph.write_bytes(whole)
    reseal(here / "net.infer")
    assert infer_command("run", "net.infer", "--feeds", "x.npz").code == 0
    edit_manifest(here / "net.infer", lambda data: data.update(format_version=99))
    check(infer_command("run", "net.infer", "--explain"), 1, "format version 99", "install the release")


def test_infinite_answers_are_valid_json(here: Path) -> None:
    """NaN and infinities in outputs are strings in `--json`, in which JSON has no numbers for them."""
    save_npz(here / "odd.npz", {"x": np.full((1, 10), np.nan, np.float32)})
    outcome = infer_command("run", "net.infer", "--feeds", "odd.npz", "--json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(outcome.out, parse_constant=refuse)
    assert document == {"schema_version": 1, "results": [{"logits": [["NaN", "NaN"]]}]}


def test_an_output_file_is_as_readable_as_others(here: Path) -> None:
    """`-o` follows the umask, and replaces a file only by a whole one."""
    (here / "y.npz").write_text("old")
    (here / "ordinary").touch()
    assert infer_command("run", "net.infer", "--feeds", "x.npz", "-o", "y.npz").code == 0
    assert (here / "y.npz").stat().st_mode == (here / "ordinary").stat().st_mode
    assert np.load(here / "y.npz")["logits"].shape == (1, 2)


@pytest.mark.parametrize("given", ["x.npz", "--feeds x.npz"])
def test_the_suffix_of_an_output_says_what_is_written(here: Path, given: str) -> None:
    """`-o y.npz` holds the arrays and `-o y.json` the document of `--json`, whichever way feeds came."""
    printed = json.loads(infer_command("run", "net.infer", *given.split(), "--json").out)
    for name in ("y.npz", "y.json"):
        assert infer_command("run", "net.infer", *given.split(), "-o", name) == Outcome(0, "", "")
    with np.load("y.npz") as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == printed["results"][0]
    assert json.loads((here / "y.json").read_text()) == printed
    outcome = infer_command("run", "net.infer", *given.split(), "-o", "-")
    assert json.loads(outcome.out) == printed


def test_a_task_has_no_arrays_to_write(here: Path) -> None:
    """`-o y.npz` for labels is wrong usage, and says what can be had."""
    edit_manifest(here / "net.infer", _tabular)
    (here / "x.csv").write_text("1,2,3,4,5,6,7,8,9,10\n")
    outcome = infer_command("run", "net.infer", "x.csv", "-o", "y.npz")
    assert (outcome.code, outcome.out) == (2, "")
    assert "the task 'tabular-classification' answers with no arrays; give -o NAME.json" in outcome.err
    assert not (here / "y.npz").exists()


def test_explain_with_inputs_is_one_json_document(here: Path) -> None:
    """`--explain --json` gives plan and results together; without inputs, the plan alone."""
    document = json.loads(infer_command("run", "net.infer", "x.npz", "--explain", "--json").out)
    assert list(document) == ["schema_version", "plan", "results"]
    assert document["plan"]["variant"] == "onnx"
    alone = json.loads(infer_command("run", "net.infer", "--explain", "--json").out)
    assert alone == {"schema_version": 1, "plan": document["plan"]}


def test_an_output_that_is_a_link_keeps_leading_there(here: Path) -> None:
    """The file behind a link is replaced, not the link; one that dangles gets its file."""
    (here / "folder" / "real.npz").write_text("old")
    (here / "y.npz").symlink_to("folder/real.npz")
    (here / "new.npz").symlink_to("folder/new.npz")
    for link in ("y.npz", "new.npz"):
        assert infer_command("run", "net.infer", "x.npz", "-o", link).code == 0
        assert (here / link).is_symlink()
        assert np.load(here / link)["logits"].shape == (1, 2)
    assert sorted(p.name for p in (here / "folder").iterdir()) == ["new.npz", "real.npz"]
    (here / "loop.npz").symlink_to("loop.npz")
    check(infer_command("run", "net.infer", "x.npz", "-o", "loop.npz"), 1, "leads back to itself")


def test_an_output_that_is_a_pipe_or_a_device_stays_one(here: Path) -> None:
    """A reader of a pipe gets the whole document, a device swallows it; neither becomes a file."""
    printed = json.loads(infer_command("run", "net.infer", "x.npz", "--json").out)
    os.mkfifo(here / "pipe")
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit((here / "pipe").read_text)
        assert infer_command("run", "net.infer", "x.npz", "-o", "pipe").code == 0
        assert json.loads(heard.result()) == printed
    assert (here / "pipe").is_fifo()
    (here / "null.npz").symlink_to(os.devnull)
    for device in (os.devnull, "null.npz"):
        assert infer_command("run", "net.infer", "x.npz", "-o", device).code == 0
    assert Path(os.devnull).is_char_device()


def test_every_error_class_is_in_the_tree_that_is_drawn() -> None:
    """errors.py draws each class below its parent."""
    from infer import errors

    drawn = re.findall(r"^[ │├└─]+(\w+Error)", errors.__doc__ or "", flags=re.MULTILINE)
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.InferError)]
    assert sorted(drawn) == sorted(c.__name__ for c in classes)
