"""An artifact to be attacked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import infer
from infer.feeds import example_point
from tests.tiny import make_artifact


@pytest.fixture(scope="session")
def whole_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact") / "net.infer")


@pytest.fixture
def artifact(whole_artifact: Path, tmp_path: Path) -> Path:
    """A fresh copy of a sound artifact: `x` float32 [batch, 10] to `logits` [batch, 2]."""
    path = tmp_path / "net.infer"
    shutil.copytree(whole_artifact, path)
    return path


@pytest.fixture
def warming(artifact: Path) -> Path:
    """The file of the feeds that `infer.load` runs before it hands a session over."""
    point = example_point(infer.Artifact.open(artifact).manifest)
    assert point is not None
    return artifact / point.feeds
