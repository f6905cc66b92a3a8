"""Families of `transformers` convert from their folders, pass parity at all points, and run."""

from __future__ import annotations

from pathlib import Path

import pytest

import converters
import infer
from bench.fusion import KINDS, fused
from infer.parity import TOLERANCES, compare
from tests.architectures import ARCHITECTURES, REPRESENTATIVE, Architecture

LONG = ("swin", "mobilenet-v1")
"""Those with the longest expressions of sizes."""

RARE = (
    *("funnel", "cvt", "mobilevit", "mobilenet-v2", "pvt-v2", "swinv2"),
    *("conditional-detr", "deformable-detr"),
)
"""They take as long, and few use them, or one much like them is converted, too: .ci/run has no time."""


FUSED = (
    *("bert", "roberta", "distilbert", "albert", "mpnet", "deberta", "vit", "swin", "detr", "whisper"),
    *("gpt2", "llama", "t5", "marian"),
)
"""All of their attention, norms and activations become single nodes."""


def _marked(architecture: Architecture) -> object:
    if architecture.name in RARE:
        return pytest.param(architecture, id=architecture.name, marks=pytest.mark.rare)
    marks = [] if architecture.name in REPRESENTATIVE else [pytest.mark.slow]
    marks += [pytest.mark.long] if architecture.name in LONG else []
    return pytest.param(architecture, id=architecture.name, marks=marks)


ELSEWHERE = ("rt-detr", "segformer")
"""They take long, and test_object_detection and test_segmentation convert them, with their tasks, and look
at their dims."""


@pytest.mark.parametrize("architecture", [_marked(a) for a in ARCHITECTURES if a.name not in ELSEWHERE])
def test_architecture_converts_and_runs(architecture: Architecture, tmp_path: Path) -> None:
    """Converted with infer's own example inputs: equal at all points, all dims of the original kept,
    and golden answers come out of a session."""
    stage = "build"
    try:
        folder = architecture.save(tmp_path / "model")
        stage = "convert"
        artifact = converters.convert(folder, tmp_path / "model.infer")
        stage = "run"
        with infer.load(artifact.path) as session:
            for name, feeds, expected in artifact.golden():
                for difference in compare(expected, session.run(feeds), TOLERANCES):
                    assert difference.within, f"at {name}, {difference}"
    except infer.InferError as error:
        pytest.fail(f"{architecture.name} failed to {stage}: {error}", pytrace=False)
    manifest = artifact.manifest
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert len({m.point for m in manifest.parity.measured}) >= 3
    notes = manifest.provenance.notes
    assert manifest.signature.dims == architecture.dims, notes
    for dim in architecture.fixed:
        assert any(note.startswith(f"dim '{dim}' is fixed: no exporter can vary it") for note in notes)
    if architecture.name in FUSED:
        census, whole = manifest.provenance.census, fused(artifact, tmp_path / "workshop").counted.whole
        assert census["attention"]
        assert {kind: census.get(kind, 0) - whole[kind] for kind in KINDS} == dict.fromkeys(KINDS, 0)
