"""What the pytest-benchmark suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import converters
import infer
from bench.zoo import minilm


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[infer.Session]:
    """MiniLM."""
    path = tmp_path_factory.mktemp("hot") / "minilm.infer"
    converters.convert(minilm.folder(), path)
    with infer.load(path) as opened:
        yield opened
