"""What hostile names and pictures can do to a terminal and to memory."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from infer.errors import InputError
from infer.tasks.pixels import open_picture
from tests.command import infer_command
from tests.test_command_ends import ENVIRONMENT, PYTHON
from tests.tiny import classifier, edit_manifest, reseal

UNSEEN = "\u061c\u200b\ufeff\u00ad\u180e\u2060\U000e0041\U000e007f"
"""Marks of Unicode's category Cf that show nothing, tag characters among them."""

EVIL = f"\x1b[2J\x1b]0;owned\x07\r\x08\x9b31m\x7f\u202etxt.exe\u2066{UNSEEN}\nparity  equal at 9 points"
"""Clears the screen, sets the title, goes back, colours, reorders text, hides some, and forges a line."""

# escapes that infer itself writes: bold, colours, reset
OWN = re.compile("\x1b\\[(0|1|22|3[0-9])m")
# Progress rewrites its own line on a terminal
REWRITE = re.compile("\r\x1b\\[K")
BAD = re.compile(f"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069{UNSEEN}]")


def _everywhere(data: dict[str, Any]) -> None:
    """Put the text wherever the format leaves text free."""
    data["name"] = EVIL
    data["inputs"][0]["dims"][0] = EVIL
    data["outputs"][0]["dims"][0] = EVIL
    data["task"] = {"name": EVIL, "spec": {"labels": [EVIL, EVIL]}}
    data["variants"][0] |= {"name": EVIL, "precision": EVIL}
    data["golden"][0]["name"] = EVIL
    data["parity"]["oracle"] = EVIL
    data["parity"]["measured"][0] |= {"point": EVIL, "output": EVIL}
    data["provenance"] |= {
        "source": EVIL,
        "created": EVIL,
        "attempts": [{"exporter": EVIL, "opset": 1, "reason": EVIL}],
        "patches": [EVIL],
        "versions": {EVIL: EVIL},
        "notes": [EVIL],
    }


def _clean(text: str) -> str:
    text = REWRITE.sub("", OWN.sub("", text))
    assert not BAD.search(text), ascii(BAD.search(text))
    return text


@pytest.mark.parametrize("command", ["inspect", "run --explain", "verify", "run --text x"])
def test_control_characters_of_an_artifact_do_not_reach_the_terminal(artifact: Path, command: str) -> None:
    """On a terminal, all that is printed is visible text and infer's own colours; no line is forged."""
    edit_manifest(artifact, _everywhere)
    name, *options = command.split()
    outcome = infer_command(name, artifact, *options, terminal=True)
    shown = _clean(outcome.out) + _clean(outcome.err)
    assert "\nparity  equal at 9" not in shown
    assert "infer itself failed" not in shown
    if name == "inspect":
        assert outcome.code == 0
        assert r"\x1b[2J\x1b]0;owned\x07\r\x08\x9b31m\x7f\u202etxt.exe\u2066" in shown
        assert rf"{UNSEEN.encode('unicode_escape').decode()}\nparity" in shown


def test_names_inside_a_graph_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Operators, tensors and dims of a plain .onnx file are escaped as well."""
    model = classifier()
    model.graph.node[1].op_type = EVIL
    model.graph.input[0].name = EVIL
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = EVIL
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for arguments in (["inspect", path], ["run", path, "--text", EVIL], ["run", path]):
        outcome = infer_command(*arguments, terminal=True)
        _clean(outcome.out)
        _clean(outcome.err)


def test_json_carries_names_escaped_and_whole(artifact: Path) -> None:
    """`--json` gives the very text back, without one control character in the document."""
    edit_manifest(artifact, _everywhere)
    outcome = infer_command("inspect", artifact, "--json", terminal=True)
    assert not BAD.search(outcome.out)
    assert json.loads(outcome.out)["manifest"]["name"] == EVIL


def test_no_color_is_honoured(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR a terminal gets text alone, and progress still rewrites its line."""
    assert OWN.search(infer_command("inspect", artifact, terminal=True).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in infer_command("inspect", artifact, terminal=True).out
    outcome = infer_command("verify", artifact, terminal=True)
    assert REWRITE.search(outcome.err)
    assert not OWN.search(outcome.err)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_the_output_will_do(artifact: Path, encoding: str) -> None:
    """What a terminal cannot show is escaped; `--json` is valid in UTF-8 wherever it goes."""
    edit_manifest(artifact, lambda data: data.update(name="é漢😀"))
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    for arguments in (["inspect"], ["inspect", "--json"]):
        done = subprocess.run(
            [*PYTHON, *arguments, str(artifact)], env=environment, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
        if "--json" in arguments:
            assert json.loads(done.stdout.decode("utf-8"))["manifest"]["name"] == "é漢😀"
        else:
            assert done.stdout.decode(encoding).startswith(
                "é漢😀".encode(encoding, "backslashreplace").decode(encoding)
            )


def test_file_names_in_errors_are_escaped(tmp_path: Path) -> None:
    """An error about a path is one clean paragraph."""
    outcome = infer_command("inspect", tmp_path / "\x1b[31m\n.infer", terminal=True)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    _clean(outcome.err)


@pytest.mark.parametrize("labels", [5, {"a": 1}, "text", [[1], None, {"a": 2}], []])
def test_a_task_spec_of_other_types_does_not_break_inspect(artifact: Path, labels: object) -> None:
    """The spec is free JSON; inspect shows what it can of it."""
    edit_manifest(artifact, lambda d: d.update(task={"name": "t", "spec": {"labels": labels}}))
    assert infer_command("inspect", artifact).code == 0


def _png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (13_400, 13_400)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """A hundred bytes that claim gigabytes of pixels are an `InputError`, from a path and from bytes."""
    import tracemalloc

    path = tmp_path / "bomb.png"
    path.write_bytes(_png(*size))
    tracemalloc.start()
    try:
        for source in (path, path.read_bytes()):
            with pytest.raises(InputError, match="cannot be read as an image"):
                open_picture(source)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_the_artifact_with_the_text_everywhere_is_still_sound(artifact: Path) -> None:
    """The hostile manifest is valid, so that the tests above look at its output and not at an error."""
    edit_manifest(artifact, _everywhere)
    reseal(artifact)
    outcome = infer_command("verify", artifact)
    assert outcome.code == 0
    assert "equal" in outcome.out
