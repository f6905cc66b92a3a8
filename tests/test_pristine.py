"""Converting leaves the module as it came, and asks it as it came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converters.flat import FlatModule
from converters.points import make_points, traced_elsewhere
from converters.pristine import pristine
from converters.ready import ready
from converters.source import Source


class Remembers(nn.Module):
    """Shrinks for good when it sees a short input, as a Swin does on a small image."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 10
        self.seen: dict[int, int] = {}
        self.linear = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.window = min(self.window, x.shape[1])
        self.seen[x.shape[1]] = self.window
        self.last = x
        return torch.zeros_like(x) + self.window


def _flat(module: nn.Module) -> FlatModule:
    return FlatModule(Source("net", "a net", module, args=(torch.ones(2, 8),)))


def test_pristine_restores_attributes() -> None:
    """Attributes that were set, changed, added or filled are as before, also after a failure."""
    module = Remembers()
    seen = module.seen
    with pytest.raises(ZeroDivisionError), pristine(module):
        _fail_after(module)
    assert module.window == 10
    assert module.seen is seen
    assert seen == {}
    assert not hasattr(module, "last")


def _fail_after(module: nn.Module) -> None:
    module(torch.ones(2, 3))
    raise ZeroDivisionError


def test_points_are_asked_afresh() -> None:
    """A short point leaves no trace in the answers at longer ones."""
    points = make_points(_flat(Remembers()), {}, {"x": {0: "batch", 1: "length"}})
    lengths = {point.feeds["x"].shape[1]: point.outputs["output"].max() for point in points.points}
    assert min(lengths) < 10 < max(lengths)
    assert lengths == {length: min(length, 10) for length in lengths}


def test_exporting_keeps_eval_mode() -> None:
    """The TorchScript exporter puts all parts into the mode of the wrapper, which must be eval mode:
    in training mode, dropout answers at random and batch norm writes its statistics."""
    module = nn.Sequential(nn.Dropout(0.5)).eval()
    flat = FlatModule(Source("net", "a net", module, args=(torch.ones(2, 8),)))
    assert not flat.training
    assert not module.training


def test_gradients_are_off_only_while_converting() -> None:
    """What was trainable is trainable afterwards; what was frozen stays frozen."""
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with ready(Source("net", "a net", module, args=(torch.ones(1, 2),))):
        assert not module.weight.requires_grad
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


def test_traced_elsewhere_moves_only_the_example() -> None:
    """Exporters see other sizes of the dims in question, two rows, and the points stay."""
    flat = _flat(Remembers())
    points = make_points(flat, {}, {"x": {0: "batch", 1: "length"}})
    moved = traced_elsewhere(flat, points, frozenset(["length"]))
    assert [tuple(t.shape) for t in moved.example] == [(2, 11)]
    assert moved.points == points.points
    assert moved.notes[-1] == "it was traced at length=11"
