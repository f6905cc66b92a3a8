"""Zoo models are trained once, and always to the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.zoo.training import fit, trained

TRAININGS: list[int] = []


def train(model: nn.Linear) -> None:
    TRAININGS.append(1)
    x = torch.randn(64, 4)

    def step(places: torch.Tensor) -> torch.Tensor:
        return ((model(x[places])[:, 0] - x[places].sum(1)) ** 2).mean()

    fit(
        model,
        step,
        64,
        lambda: -float(((model(x)[:, 0] - x.sum(1)) ** 2).mean()),
        epochs=3,
        batch_size=16,
        learning_rate=0.1,
    )


def test_training_is_repeatable_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before, first weights and training are the same; a second call reads the cache."""
    states = []
    TRAININGS.clear()
    for folder in ("a", "b", "b"):
        monkeypatch.setenv("INFER_ZOO_CACHE", str(tmp_path / folder))
        torch.manual_seed(len(states))
        states.append(trained(lambda: nn.Linear(4, 1), train).state_dict())
    assert len(TRAININGS) == 2
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
