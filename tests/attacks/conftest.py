"""An artifact to be attacked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
