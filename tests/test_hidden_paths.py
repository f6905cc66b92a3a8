"""What an export does not see: branches on values and sizes, memory, randomness, numbers beside tensors.

Each of these models was once converted with parity "equal" and answered wrongly afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converters
import infer
from infer.errors import ConversionError, FeedError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    """A module whose forward is a function of the module and `x`."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def convert(tmp_path: Path, function: Any, **options: Any) -> infer.Artifact:
    module = Function(function).eval()
    options.setdefault("example_inputs", {"x": X})
    return converters.convert(module, tmp_path / "net.infer", **options)


def answer(artifact: infer.Artifact, x: Any) -> np.ndarray[Any, Any]:
    with infer.load(artifact.path) as session:
        outputs = session.run({"x": np.asarray(x, np.float32)})
    return next(iter(outputs.values()))


def scaled_if_large(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if x.max() > 10:
        x = x / 255
    return x * 2


def test_a_branch_on_values_is_refused_with_its_line(tmp_path: Path) -> None:
    """A trace takes the example's side for all inputs; the error quotes the line and says the cure."""
    with pytest.raises(ConversionError, match=r"test_hidden_paths\.py: if x\.max\(\) > 10.*torch\.where"):
        convert(tmp_path, scaled_if_large)
    assert not list(tmp_path.iterdir())


def test_an_accepted_branch_is_answered_if_nothing_shows_it(tmp_path: Path) -> None:
    """With freeze_branches, what no value of the points takes is left out of the graph."""

    def checked(module: Any, x: torch.Tensor) -> torch.Tensor:
        if torch.isnan(x).any():
            raise ValueError("NaN")
        return x * 2

    artifact = convert(tmp_path, checked, freeze_branches=True)
    np.testing.assert_array_equal(answer(artifact, [[1] * 6]), [[2] * 6])


def test_an_accepted_branch_is_still_held_to_the_points(tmp_path: Path) -> None:
    """With freeze_branches a trace is taken, but not one that is seen to be wrong at other values."""
    with pytest.raises(ConversionError, match="example × 16"):
        convert(tmp_path, scaled_if_large, freeze_branches=True)


def test_a_branch_on_a_size_becomes_a_limit(tmp_path: Path) -> None:
    """Sizes on the other side of the branch are refused; those on this side are answered right."""

    def by_batch(module: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] <= 4 else x * 3

    artifact = convert(tmp_path, by_batch)
    assert str(artifact.manifest.limits["batch"]) == "1 to 4"
    np.testing.assert_array_equal(answer(artifact, np.ones((4, 6))), np.full((4, 6), 2))
    with pytest.raises(FeedError, match="batch = 5 on axis 0, but the model was converted for 1 to 4"):
        answer(artifact, np.ones((5, 6)))


def test_size_one_of_a_dim_is_tried(tmp_path: Path) -> None:
    """torch takes sizes to be at least 2; a model that does another thing at 1 is limited to 2 or more."""

    def mean(module: Any, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(1) if x.shape[1] == 1 else x.mean(1) * 2

    artifact = convert(tmp_path, mean, dynamic={"x": {1: "length"}})
    assert str(artifact.manifest.limits["length"]) == "2 or more"
    np.testing.assert_allclose(answer(artifact, np.ones((3, 5))), np.full(3, 2), rtol=1e-6)
    with pytest.raises(FeedError, match="length = 1"):
        answer(artifact, np.ones((3, 1)))


def test_an_exported_program_is_not_asked_beyond_its_range(tmp_path: Path) -> None:
    """A .pt2 made for 2 to 12 is served for these, whatever its graph would answer at 20."""

    class ByLength(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[1] <= 12 else x * 3

    length = torch.export.Dim("length", min=2, max=12)
    program = torch.export.export(ByLength(), (X,), dynamic_shapes={"x": {1: length}})
    artifact = converters.convert(program, tmp_path / "p.infer", dynamic={"x": {1: "length"}})
    assert artifact.manifest.limits["length"].most == 12
    with pytest.raises(FeedError, match="length = 20"):
        answer(artifact, np.ones((2, 20)))


def test_a_model_that_remembers_is_asked_and_left_as_it_came(tmp_path: Path) -> None:
    """Buffers that a call writes have their values again afterwards; the manifest says that it writes."""

    def running_maximum(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.seen.copy_(torch.maximum(module.seen, x.abs().max()))
        return module.linear(x / module.seen)

    module = Function(running_maximum).eval()
    artifact = converters.convert(module, tmp_path / "net.infer", example_inputs={"x": X})
    assert module.seen.item() == 0.0
    assert any("writes into seen" in note for note in artifact.manifest.provenance.notes)
    x = torch.full((1, 6), 0.25)
    with torch.no_grad():
        expected = module(x)
    np.testing.assert_allclose(answer(artifact, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [lambda x: x.shape[0], lambda x: float(x.max())])
def test_numbers_that_change_are_refused(tmp_path: Path, number: Any) -> None:
    """A Python number beside the tensors would be the example's forever."""
    with pytest.raises(ConversionError, match=r"changes with its inputs.*return such numbers as tensors"):
        convert(tmp_path, lambda module, x: {"y": x * 2, "n": number(x)})


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.nn.functional.dropout(x, 1e-4),
        lambda x: x * (torch.rand(x.shape[0], 1) > 1e-4),
        lambda x: torch.where(x > 100, torch.randn_like(x), x),
    ],
)
def test_randomness_that_hardly_shows_is_refused(tmp_path: Path, draw: Any) -> None:
    """Answers were the same twice by luck; the graph's operators tell."""
    with pytest.raises(ConversionError, match="draws random numbers"):
        convert(tmp_path, lambda module, x: module.linear(draw(x)))


def test_nothing_is_proved_by_nothing(tmp_path: Path) -> None:
    """Answers of NaN only, empty examples and models without outputs are refused."""
    with pytest.raises(ConversionError, match="nothing but NaN or infinity"):
        convert(tmp_path, lambda module, x: x * float("nan"))
    with pytest.raises(ConversionError, match=r"example of input 'x' has shape \[0, 6\]"):
        convert(tmp_path, lambda module, x: x * 2, example_inputs={"x": X[:0]})
    with pytest.raises(ConversionError, match="returns no tensor"):
        convert(tmp_path, lambda module, x: {"note": None})


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("complex64", torch.fft.fft),
        ("sparse_coo", lambda x: x.to_sparse()),
        ("bfloat16", lambda x: x.to(torch.bfloat16)),
        ("float8_e4m3fn", lambda x: x.to(torch.float8_e4m3fn)),
    ],
)
def test_tensors_that_numpy_cannot_hold_are_named(tmp_path: Path, kind: str, make: Any) -> None:
    """One sentence before anything is exported, and no traceback."""
    with pytest.raises(ConversionError, match=rf"tensor 'y' of the model is .*{kind}.*numpy cannot hold"):
        convert(tmp_path, lambda module, x: {"y": make(x)})


def test_a_batch_may_be_any_axis_of_an_output(tmp_path: Path) -> None:
    """A batch-first LSTM gives its state with the batch second; the batch stays free."""
    lstm = nn.LSTM(3, 4, batch_first=True).eval()
    artifact = converters.convert(
        lstm, tmp_path / "lstm.infer", example_inputs={"input": torch.randn(2, 5, 3)}
    )
    x = torch.randn(7, 5, 3)
    with torch.no_grad():
        expected, (hidden, _) = lstm(x)
    with infer.load(artifact.path) as session:
        ours, (ours_hidden, _) = session({"input": x.numpy()})
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    np.testing.assert_allclose(ours_hidden, hidden, atol=1e-6)


def test_points_have_no_ties(tmp_path: Path) -> None:
    """Of equal values torch and a graph may pick different ones; resized examples repeat none."""
    artifact = convert(tmp_path, lambda module, x: torch.topk(x, 3, 1)[1])
    assert artifact.manifest.signature.dims == ("batch",)


def test_transformer_layers_with_padding_convert(tmp_path: Path) -> None:
    """torch's fast path zeroes padded positions, which no export does; real positions are equal."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    x = torch.randn(2, 5, 8)
    artifact = converters.convert(
        model, tmp_path / "t.infer", example_inputs={"src": x, "src_key_padding_mask": padding}
    )
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding).numpy()
    with infer.load(artifact.path) as session:
        ours = next(iter(session.run({"src": x.numpy(), "src_key_padding_mask": padding.numpy()}).values()))
    real = ~padding.numpy()
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-5)
