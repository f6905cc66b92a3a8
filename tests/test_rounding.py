"""The original's own rounding: measured in float64, allowed twice, and never beyond 1e-3."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import converters
import infer
from converters.flat import FlatModule
from converters.points import make_points
from converters.rounding import own_rounding, widened_tolerances
from converters.source import Source
from infer.parity import TOLERANCES, compare


class Amplifier(nn.Module):
    """LayerNorm over values that are almost equal: it divides by what little they differ."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(256, 64)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.linear(x) + self.offset
        return {"plain": hidden, "normed": nn.functional.layer_norm(hidden, (64,))}


X = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))


def rounding_of(module: nn.Module) -> dict[str, float]:
    flat = FlatModule(Source("s", "test", module.eval(), args=(X,)))
    return own_rounding(flat, make_points(flat, {}, {"x": {0: "batch"}}))


def test_rounding_grows_with_what_is_amplified() -> None:
    """Near zero the answer is exact to float32; beside a large offset, its difference is not."""
    exact, amplified = rounding_of(Amplifier(0.0)), rounding_of(Amplifier(3000.0))
    assert max(exact.values()) < 1e-6
    assert amplified["plain"] < 1e-6
    assert 2e-5 < amplified["normed"] < 5e-4


def test_only_what_is_rounding_is_widened() -> None:
    """Exact outputs keep their tolerance; so does an output that is off by more than rounding can be."""
    for offset, names in ((0.0, set()), (3000.0, {"normed"}), (3e6, set())):
        flat = FlatModule(Source("s", "test", Amplifier(offset).eval(), args=(X,)))
        points = make_points(flat, {}, {"x": {0: "batch"}})
        widened, notes = widened_tolerances(flat, points, TOLERANCES)
        assert set(widened) - set(TOLERANCES) == names
        assert len(notes) == len(names)


def test_a_model_in_float32_only_tells_nothing() -> None:
    """If the model cannot run in float64, nothing is widened."""

    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.mm(x, torch.ones(256, 2, dtype=torch.float32))

    assert rounding_of(Stubborn()) == {}


def test_an_amplifying_model_converts_and_verifies(tmp_path: Path) -> None:
    """It passes parity, with its own rounding as tolerance if it needs it, and again when it is run."""
    artifact = converters.convert(Amplifier(3000.0).eval(), tmp_path / "a.infer", example_inputs=(X,))
    parity = artifact.manifest.parity
    assert parity is not None
    assert parity.passed
    with infer.load(artifact.path) as session:
        for _, feeds, expected in artifact.golden():
            assert all(d.within for d in compare(expected, session.run(feeds), parity.tolerances))
