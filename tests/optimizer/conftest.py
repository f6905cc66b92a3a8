"""Fixtures of the optimizer as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import converters
from infer.backends.openvino import OpenvinoBackend
from infer.manifest import TaskSpec
from infer.measure.statistics import Estimate
from infer.optimizer import preparing
from infer.optimizer import search as search_module
from infer.optimizer import timing as timing_module
from infer.optimizer import tuning as tuning_module
from infer.optimizer.recipes import Recipe
from infer.optimizer.targets import Target
from tests.optimizer.planted import WIDTH, Classifier, Plant, harmless, rough


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Classifier` as a tabular-classification artifact."""
    path = tmp_path_factory.mktemp("classifier") / "classifier.infer"
    columns = [{"name": f"c{i}", "kind": "numeric"} for i in range(WIDTH)]
    task = TaskSpec(
        "tabular-classification",
        {"input": "x", "output": "logits", "labels": ["left", "right"], "columns": columns},
    )
    example = {"x": torch.rand(4, WIDTH)}
    converters.convert(Classifier().eval(), path, example_inputs=example, task=task)
    return path


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 labelled rows for it."""
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    x = np.random.default_rng(0).random((200, WIDTH)).astype(np.float32)
    labels = (x[:, WIDTH // 2 :].sum(1) > x[:, : WIDTH // 2].sum(1)).astype(int)
    np.savez(path, inputs=x, labels=labels)
    return path


@pytest.fixture(autouse=True)
def _no_settings_nor_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests about settings, about other rows, and about other types, spend time on them."""
    monkeypatch.setattr(tuning_module, "SWITCHES", {})
    monkeypatch.setattr(tuning_module, "huge_pages_work", lambda: False)
    monkeypatch.setattr(preparing, "ratio_apart", lambda *_: Estimate(1.0, 0.99, 1.01))
    for module in (search_module, tuning_module):
        monkeypatch.setattr(module, "other_rows", lambda trial: None)
    monkeypatch.setattr(OpenvinoBackend, "compute_dtypes", lambda self, machine, signature: ())


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Puts passes and recipes in the place of those there are; speeds are then as told, in turn."""

    def plant(
        passes: dict[str, Any], recipes: tuple[Recipe, ...] = (), speeds: dict[str, float] | None = None
    ) -> None:
        target = Target("onnxruntime", "cpu", passes, recipes)
        monkeypatch.setattr(search_module, "targets_of", lambda device: (target,))
        if speeds is None:
            return

        def told(candidate: Any, against: Any, timed: Any, *_: Any) -> Estimate:
            at = f", {len(next(iter(timed[0].values())))} rows"
            keys = (
                f"{candidate.name} beside {against.name}{at}",
                f"{candidate.name}{at}",
                f"{candidate.name} beside {against.name}",
                candidate.name,
            )
            found = next((speeds[key] for key in keys if key in speeds), 1.0)
            return Estimate(found, found * 0.99, found * 1.01)

        monkeypatch.setattr(timing_module, "time_ratio", told)
        monkeypatch.setattr(timing_module, "ratio_apart", told)

    return plant


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """A pass of the default backend, and another backend with a recipe; speeds are as told."""

    def put(speeds: dict[str, float]) -> None:
        first = Target("onnxruntime", "cpu", {"good": harmless})
        second = Target("openvino", "cpu", {}, (replace(rough(), name="openvino-rough"),))
        monkeypatch.setattr(search_module, "targets_of", lambda device: (first, second))

        def told(candidate: Any, against: Any, *_: Any) -> Estimate:
            found = speeds.get(candidate.name, 1.0)
            return Estimate(found, found * 0.99, found * 1.01)

        monkeypatch.setattr(timing_module, "time_ratio", told)

    return put
