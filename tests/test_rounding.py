"""The original's own rounding is told to whoever must judge a tolerance; the tolerance itself stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import converters
import infer
from converters.flat import FlatModule
from converters.points import make_points
from converters.rounding import own_rounding
from converters.source import Source
from infer.errors import ConversionError, ParityError
from infer.parity import TOLERANCES, Tolerance, compare


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
EXACT = Tolerance(atol=0.0, rtol=0.0, scaled=0.0)


def rounding_of(module: nn.Module) -> dict[str, float]:
    flat = FlatModule(Source("s", "test", module.eval(), args=(X,)))
    return own_rounding(flat, make_points(flat, {}, {"x": {0: "batch"}}))


def test_rounding_grows_with_what_is_amplified() -> None:
    """Near zero the answer is exact to float32; beside a large offset, its difference is not."""
    exact, amplified = rounding_of(Amplifier(0.0)), rounding_of(Amplifier(3000.0))
    assert max(exact.values()) < 1e-6
    assert amplified["plain"] < 1e-6
    assert 2e-5 < amplified["normed"] < 5e-4


def test_a_model_in_float32_only_tells_nothing() -> None:
    """If the model cannot run in float64, nothing is said of its rounding."""

    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.mm(x, torch.ones(256, 2, dtype=torch.float32))

    assert rounding_of(Stubborn()) == {}


def test_failing_parity_says_how_exact_the_original_is(tmp_path: Path) -> None:
    """The error names the original's own rounding and the option to accept it, for that output only."""
    module = Amplifier(3000.0).eval()
    with pytest.raises(
        ParityError, match=r"'normed' is \d\.\de-0[45] of its.*--tolerance normed="
    ) as caught:
        converters.convert(module, tmp_path / "a.infer", example_inputs=(X,), tolerances={"normed": EXACT})
    assert "'plain' is" not in str(caught.value)
    assert not (tmp_path / "a.infer").exists()


def test_a_stated_tolerance_is_used_and_recorded(tmp_path: Path) -> None:
    """What the caller states for an output goes into the manifest; dtypes keep theirs."""
    stated = Tolerance(atol=1e-7, rtol=0.0, scaled=5e-4)
    artifact = converters.convert(
        Amplifier(3000.0).eval(), tmp_path / "a.infer", example_inputs=(X,), tolerances={"normed": stated}
    )
    parity = artifact.manifest.parity
    assert parity is not None
    assert parity.passed
    assert parity.tolerances == {**TOLERANCES, "normed": stated}
    with infer.load(artifact.path) as session:
        for _, feeds, expected in artifact.golden():
            assert all(d.within for d in compare(expected, session.run(feeds), parity.tolerances))


def test_a_tolerance_of_nothing_is_refused(tmp_path: Path) -> None:
    """A misspelt name would silently leave the output at its dtype's tolerance."""
    with pytest.raises(ConversionError, match=r"no output or dtype 'norm'.*plain, normed"):
        converters.convert(
            Amplifier(0.0).eval(), tmp_path / "a.infer", example_inputs=(X,), tolerances={"norm": EXACT}
        )
