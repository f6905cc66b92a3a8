"""Fixtures that several test files share. Converted artifacts are made once a process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import converters
import infer
from tests.models import TwoLayers

if expected := os.environ.get("INFER_INSTALLED_IN"):
    # when a wheel is tested, the sources must not be what is imported
    for package in (infer, converters):
        assert Path(package.__file__).is_relative_to(expected), f"{package.__file__} is not the wheel's"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so starts what a shell runs in the background, and so would the commands that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # as many test processes as cores


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a small seeded net: `x` float32 [batch, 10] to `logits` [batch, 2]."""
    path = tmp_path_factory.mktemp("net") / "net.infer"
    torch.manual_seed(0)
    converters.convert(TwoLayers().eval(), path, example_inputs={"x": torch.randn(4, 10)})
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled models go into a folder of the tests, not into the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache" / "compiled"
    monkeypatch.setattr("infer.compiled._folder", lambda: folder)


@pytest.fixture
def source_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes Python source to a file `source.py` of its own folder."""

    def write(text: str) -> Path:
        path = tmp_path / "source.py"
        path.write_text("import torch\nfrom torch import nn\n" + text, encoding="utf-8")
        return path

    return write
