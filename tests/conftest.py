"""Fixtures that several test files share. Converted artifacts are made once a process."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import hypothesis
import pytest
import torch

import converters
import infer
from bench.zoo import training
from tests.models import TwoLayers

if expected := os.environ.get("INFER_INSTALLED_IN"):
    # when a wheel is tested, the sources must not be what is imported
    for package in (infer, converters):
        assert Path(package.__file__).is_relative_to(expected), f"{package.__file__} is not the wheel's"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so starts what a shell runs in the background, and so would the commands that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # as many test processes as cores

# what is imported by now stays, and exporting makes millions of objects: to look through them less often
# saves a tenth of the time of a conversion
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)

# how long an example takes says how busy the machine is
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)  # when those that -m leaves out are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first in the part of the tests that each process starts with: what is left at the end
    is short and can be shared, and no process waits for the long test of another."""
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    long = [item for item in items if item.get_closest_marker("long")]
    others = [item for item in items if not item.get_closest_marker("long")]
    size = -(-len(others) // parts)
    items[:] = [
        item
        for part in range(parts)
        for item in (*long[part::parts], *others[part * size : (part + 1) * size])
    ]


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


class TrainFor(Protocol):
    """Has a family of the zoo trained for fewer epochs than its own."""

    def __call__(self, family: ModuleType, *, epochs: int) -> None: ...


@pytest.fixture
def train_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainFor:
    """For models that need not be as good as they can be. Their weights are no one else's, so they are not
    kept where those of the whole training are."""

    def shorten(family: ModuleType, *, epochs: int) -> None:
        fit = family.fit

        def shorter(*args: Any, **options: Any) -> float:
            assert options["epochs"] > epochs
            score: float = fit(*args, **{**options, "epochs": epochs})
            return score

        monkeypatch.setattr(family, "fit", shorter)
        monkeypatch.setattr(training, "cache", lambda: tmp_path)

    return shorten


@pytest.fixture
def source_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes Python source to a file `source.py` of its own folder."""

    def write(text: str) -> Path:
        path = tmp_path / "source.py"
        path.write_text("import torch\nfrom torch import nn\n" + text, encoding="utf-8")
        return path

    return write
