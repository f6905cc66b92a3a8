"""Test points: which sizes the original is asked at, and what that says about dims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from converters.flat import FlatModule
from converters.points import Points, make_points
from converters.source import Source
from infer.errors import ConversionError


class Token(nn.Module):
    """Embeds ids and averages them over the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.embed(input_ids)
        weights = attention_mask[..., None].float()
        return {"tokens": tokens, "mean": (tokens * weights).sum(1) / weights.sum(1)}


def points_of(module: nn.Module, explicit: Any = None, usual: Any = None, **kwargs: Any) -> Points:
    source = Source("s", "test", module.eval(), kwargs=kwargs)
    return make_points(FlatModule(source), explicit or {}, usual or {})


IDS = torch.arange(12).reshape(2, 6)
MASK = torch.ones(2, 6, dtype=torch.int64)
BOTH = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


def test_points_cover_every_dim_and_their_combination() -> None:
    """The example, batch 1 and an odd one, length 1 and two others, and all varied together."""
    points = points_of(Token(), usual=BOTH, input_ids=IDS, attention_mask=MASK)
    sizes = {p.name: p.feeds["input_ids"].shape for p in points.points}
    assert sizes["example"] == (2, 6)
    assert {s[0] for s in sizes.values()} == {1, 2, 3}
    assert len({s[1] for s in sizes.values() if s[0] == 2}) == 4
    assert any(s[0] != 2 and s[1] != 6 for s in sizes.values())


def test_masks_stay_masks_and_ids_stay_ids() -> None:
    """Resized masks are ragged prefixes of ones, resized ids stay within those of the example."""
    points = points_of(Token(), usual=BOTH, input_ids=IDS, attention_mask=MASK)
    for point in points.points[1:]:
        mask = point.feeds["attention_mask"]
        assert (mask[:, :1] == 1).all()
        assert (mask[:, 1:] <= mask[:, :-1]).all()
        assert point.feeds["input_ids"].max() <= IDS.max()
    assert any((p.feeds["attention_mask"] == 0).any() for p in points.points)


def test_output_dims_follow_from_what_was_observed() -> None:
    """Equal to an input's dim at all points: that dim. Constant: a number."""
    points = points_of(Token(), usual=BOTH, input_ids=IDS, attention_mask=MASK)
    assert [str(spec) for spec in points.outputs] == [
        "tokens: float32[batch, sequence, 4]",
        "mean: float32[batch, 4]",
    ]


def test_sizes_that_follow_otherwise_are_free() -> None:
    """A length that is neither constant nor an input's gets a name of its own."""
    net = nn.Conv1d(1, 1, 3)
    x = torch.randn(2, 1, 20)
    points = points_of(net, usual={"input": {0: "batch", 2: "length"}}, input=x)
    assert str(points.outputs[0]) == "output: float32[batch, 1, output_dim2]"


def test_a_dim_the_original_cannot_vary_is_dropped_with_a_note() -> None:
    """A usual dim is a proposal; the original decides."""
    points = points_of(nn.Linear(5, 2), usual={"input": {0: "batch", 1: "size"}}, input=torch.randn(4, 5))
    assert points.inputs[0].dims == ("batch", 5)
    assert points.notes == ("dim 'size' stays fixed at 5: the original answers at no other size",)


def test_a_batch_must_come_out_as_rows() -> None:
    """An axis that can be resized but is summed away is not taken for a batch."""

    class Total(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(dim=0)

    points = points_of(Total(), usual={"x": {0: "batch"}}, x=torch.randn(4, 5))
    assert points.inputs[0].dims == (4, 5)


def test_an_example_with_one_row_is_exported_with_two() -> None:
    """Exporters take a size of 1 for a constant, so they are shown two rows; the example stays a point."""
    points = points_of(nn.Linear(5, 2), usual={"input": {0: "batch"}}, input=torch.randn(1, 5))
    assert points.example[0].shape == (2, 5)
    assert points.points[0].feeds["input"].shape == (1, 5)


def test_inputs_that_disagree_are_named() -> None:
    """Two inputs that call different sizes by one name are an error that says what to type."""
    with pytest.raises(
        ConversionError, match=r"'batch'.* 2, but axis 0 of 'attention_mask' is 3.*--dynamic"
    ):
        points_of(
            Token(),
            explicit=BOTH,
            input_ids=IDS,
            attention_mask=torch.ones(3, 6, dtype=torch.int64),
        )


def test_an_example_that_fails_is_shown() -> None:
    """If the model fails on its own example, its error and the example's shapes are in the message."""
    with pytest.raises(ConversionError, match=r"fails on its own example inputs.*input: float32\[2, 4\]"):
        points_of(nn.Linear(5, 2), input=torch.randn(2, 4))
