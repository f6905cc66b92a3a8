"""How closely a search looks, and at what first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infer.measure.statistics import Estimate
from infer.optimizer import parse_budget
from infer.optimizer import search as search_module
from infer.optimizer import timing as timing_module
from infer.optimizer.targets import Target
from tests.optimizer.planted import Plant, harmless, optimized, rough

GLANCE, SHORT, FULL, LONG = (5, 1), (8, 2), (15, 4), (15, 4)


@pytest.mark.parametrize(
    ("seen", "looks", "kept"),
    [
        ([(1.2, 0.05)], [GLANCE], False),
        ([(0.5, 0.1), (0.6, 0.1)], [GLANCE, SHORT], True),
        ([(0.5, 0.1), (0.9, 0.2), (0.9, 0.05)], [GLANCE, SHORT, FULL], True),
        ([(0.5, 0.1), (0.9, 0.2), (1.05, 0.02)], [GLANCE, SHORT, FULL], False),
        ([(0.95, 0.1), (0.95, 0.02)], [GLANCE, FULL], True),
        ([(1.05, 0.1), (1.0, 0.1), (0.97, 0.02)], [GLANCE, FULL, LONG], True),
    ],
)
def test_what_is_far_from_alike_is_seen_sooner(
    seen: Sequence[tuple[float, float]],
    looks: list[tuple[int, int]],
    kept: bool,
    classifier: Path,
    tmp_path: Path,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A glance drops what is much slower, and two starts take what is much faster, unless they say
    otherwise; all else has four starts, and more time where these leave it open. The whole has them in
    any case, and the time. `seen` has ratios, each with half its interval."""
    plant({"good": harmless}, speeds={})
    given, asked = iter([*seen, (0.95, 0.1), (0.9, 0.01)]), []

    def told(
        ours: Any, theirs: Any, timed: Any, seconds: float, _: Any, starts: int, least: int
    ) -> Estimate:
        ratio, half = next(given)
        asked.append((least, starts))
        return Estimate(ratio, ratio - half, ratio + half)

    monkeypatch.setattr(timing_module, "time_ratio", told)
    found = optimized(classifier, tmp_path / "out.infer")
    assert [verdict.kept for verdict in found.verdicts] == [kept]
    assert asked == [*looks, *([FULL, LONG] if kept else [])]


@pytest.mark.parametrize("fastest", ["onnxruntime", "openvino"])
def test_recipes_of_the_fastest_backend_come_first(
    fastest: str,
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time may end before all are tried."""
    two_backends({"openvino": 0.5 if fastest == "openvino" else 1.5})
    targets = tuple(
        Target(name, "cpu", {}, (replace(rough(), name=f"{name}-rough"),))
        for name in ("onnxruntime", "openvino")
    )
    monkeypatch.setattr(search_module, "targets_of", lambda device: targets)
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.99"),))
    tried = [verdict.name for verdict in found.verdicts if verdict.name.endswith("rough")]
    assert tried[0] == f"{fastest}-rough"
    assert len(tried) == 2
