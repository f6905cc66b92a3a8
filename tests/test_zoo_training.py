"""Zoo models are trained once, and always to the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bench.zoo
from bench.zoo import training
from bench.zoo.training import fit, kept_at, sources, trained

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


def test_weights_are_kept_for_the_data_and_model_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of anything that a training imports from the zoo is another place in the cache."""
    zoo = Path(bench.zoo.__file__).parent
    names = {path.name for path in sources(zoo / "unet_nuclei_3d.py")}
    assert names == {"unet_nuclei_3d.py", "unet_nuclei.py", "unet.py", "training.py", "debian.py"}
    assert {"movielens.py", "ncf.py"} <= {path.name for path in sources(zoo / "ncf.py")}
    assert {"minilm.py", "sentiment.py"} <= {path.name for path in sources(zoo / "sentiment.py")}
    monkeypatch.setenv("INFER_ZOO_CACHE", str(tmp_path))
    before = kept_at(train, "")
    assert kept_at(train, "") == before
    changed = tmp_path / "training.py"
    changed.write_text(Path(training.__file__).read_text() + "\n")
    monkeypatch.setattr(training, "__file__", str(changed))
    assert kept_at(train, "") != before
