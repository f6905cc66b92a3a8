"""The table of what is fused, on one small architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import fusion
from infer.optimizer.targets import Target
from tests.optimizer.planted import shift
from tests.tiny import make_artifact, parse


def cells(line: str) -> list[str]:
    """The cells of a row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_counts_what_passes_and_the_backend_fuse(tmp_path: Path) -> None:
    """DistilBERT of two layers: as many attentions, five norms, two GELUs, all fused, the answers of each
    pass held against the golden ones."""
    head, _, row = fusion.table({"distilbert": fusion.SMALL["distilbert"]}, tmp_path)
    named = dict(zip(cells(head), cells(row), strict=True))
    assert named["architecture"] == "distilbert"
    assert {kind: named[kind] for kind in fusion.KINDS} == {
        "attention": "2 / 2",
        "norm": "5 / 5",
        "activation": "2 / 2",
    }
    assert named["pass attention"] == "2 / 2"
    assert "falls short" in named
    assert "fails" not in named["falls short"]


def test_a_pass_that_spoils_answers_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row says at which point answers differ, and counts the graph without it."""
    artifact = fusion.Artifact.open(
        make_artifact(tmp_path / "a.infer", parse("g (float[B, 8] x) => (float[B, 8] y) { y = Relu(x) }"))
    )
    target = Target("onnxruntime", "cpu", {"spoiling": shift})
    monkeypatch.setattr(fusion, "targets_of", lambda device: (target,))
    found = fusion.fused(artifact, tmp_path / "workshop")
    assert (found.passes["spoiling"].found, found.passes["spoiling"].rewritten) == (1, 0)
    assert "answers differ at" in str(found.passes["spoiling"])
    assert found.counted.whole["activation"] == 1
