"""Each patch is needed and mends what it says: without it the export fails, or is wrong elsewhere."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from transformers.models.swin import modeling_swin

import converters
import infer
from converters import patches
from converters.exporters import INPUT, OUTPUT, quiet
from converters.patches import GRAPH_PATCHES, TORCH_PATCHES, TRANSLATIONS, Active, torch_patches
from converters.patches.adaptive_pool import ADAPTIVE_POOL
from converters.patches.open_linspace import OPEN_LINSPACE
from converters.patches.packed_states import PACKED_STATES
from converters.patches.replace import TorchPatch
from infer.bare_graph import artifact_of_graph
from infer.errors import ConversionError, InferError
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES, compare_tensor
from infer.session import open_session
from infer.signature import Array


class Calls(nn.Module):
    """A module whose forward is `function`, called with its parts and the inputs."""

    def __init__(self, function: Callable[..., torch.Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*self.parts, *inputs)


def _model(family: str, file: str = "") -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{file or family}")


def _swin_layer(shift: int) -> nn.Module:
    swin = _model("swin")
    config = swin.SwinConfig(window_size=4, hidden_size=8)
    layer: nn.Module = swin.SwinLayer(config, 8, (4, 4), num_heads=2, shift_size=shift).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _run_layer(layer: Any, x: torch.Tensor) -> torch.Tensor:
    # the layer remembers that it was small once
    layer.window_size, layer.shift_size = layer.attention.config.window_size, layer.first_shift
    hidden = layer(x.flatten(1, 2), (x.shape[1], x.shape[2]))
    found: torch.Tensor = hidden[0] if isinstance(hidden, tuple) else hidden
    return found


def symbolic_int() -> nn.Module:
    dinov2 = _model("dinov2")
    return Calls(
        lambda x: nn.functional.interpolate(
            x, size=(dinov2.torch_int(x.shape[2] // 2), dinov2.torch_int(x.shape[3] / 2)), mode="bilinear"
        )
    )


def tensor_of_sizes() -> nn.Module:
    return Calls(lambda x: x.sum() + torch.as_tensor([(x.shape[2], x.shape[3]), (1, 0.5)]))


def open_linspace() -> nn.Module:
    return Calls(lambda x: x * torch.linspace(0.5, x.shape[3] - 0.5, x.shape[3]))


def float_minus_int() -> nn.Module:
    return Calls(lambda x: 1.0 - (x > 0).long())


def adaptive_pool() -> nn.Module:
    return nn.AdaptiveAvgPool2d((3, 5))


def causal_mask_check() -> nn.Module:
    layer = nn.TransformerEncoderLayer(3, 1, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def encode(encoder: nn.Module, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        encoded: torch.Tensor = encoder(tokens, mask=mask)
        return encoded

    return Calls(encode, encoder)


def same_padding() -> nn.Module:
    mobilenet = _model("mobilenet_v1")
    return Calls(
        lambda conv, x: conv(mobilenet.apply_tf_padding(x, conv)), nn.Conv2d(3, 4, (3, 5), stride=(2, 3))
    )


def swin_patch_padding() -> nn.Module:
    swin = _model("swin")
    config = swin.SwinConfig(image_size=16, patch_size=4, embed_dim=8)
    return Calls(lambda embed, x: embed(x)[0], swin.SwinPatchEmbeddings(config))


def swin_merge_padding() -> nn.Module:
    swin = _model("swin")
    return Calls(
        lambda merge, x: merge(x.permute(0, 2, 3, 1).flatten(1, 2), (x.shape[2], x.shape[3])),
        swin.SwinPatchMerging(3),
    )


def swin_window_padding() -> nn.Module:
    layer: Any = _swin_layer(shift=0)
    layer.first_shift = 0
    return Calls(lambda grow, layer, x: _run_layer(layer, grow(x).permute(0, 2, 3, 1)), _grow(), layer)


def swin_shift() -> nn.Module:
    layer: Any = _swin_layer(shift=2)
    layer.first_shift = 2
    # the example, of 8 by 12, becomes one of 4 by 6 features: one window high, so nothing is shifted
    return Calls(
        lambda grow, layer, x: _run_layer(layer, grow(x)[..., ::2, ::2].permute(0, 2, 3, 1)), _grow(), layer
    )


def _grow() -> nn.Module:
    return nn.Conv2d(3, 8, 1)


class Patches(nn.Module):
    """Cuts into patches of two by two and joins them again, as `layer` does."""

    patch_width = patch_height = 2

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cut, sizes = self.layer.unfolding(self, x)
        joined: torch.Tensor = self.layer.folding(self, torch.cumsum(cut, dim=2), sizes)
        return joined


def mobilevit_patches() -> nn.Module:
    return Patches(_model("mobilevit").MobileViTLayer)


def mobilevitv2_patches() -> nn.Module:
    # as in the model: torch.export can solve for the sizes of the first layer, but not of the second
    patches = Patches(_model("mobilevitv2").MobileViTV2Layer)
    halves = [nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)]
    return nn.Sequential(nn.Upsample(scale_factor=4), *halves[:3], patches, halves[3], patches)


class Experts(nn.Module):
    """Three experts with rows of their own; the second has none."""

    def __init__(self) -> None:
        super().__init__()
        importlib.import_module("transformers.integrations.moe")  # defines the operator
        self.weight = nn.Parameter(torch.randn(3, 3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(-1, 3)
        first = (rows[:, 0] > 0).sum()
        ends = torch.stack([first, first, torch.ones_like(rows[:, 0]).sum().long()]).int()
        multiplied: torch.Tensor = torch.ops.transformers.grouped_mm_fallback(rows, self.weight, ends)
        return multiplied


CASES: dict[str, Callable[[], nn.Module]] = {
    "symbolic-int": symbolic_int,
    "tensor-of-sizes": tensor_of_sizes,
    "open-linspace": open_linspace,
    "float-minus-int": float_minus_int,
    "adaptive-pool": adaptive_pool,
    "causal-mask-check": causal_mask_check,
    "same-padding": same_padding,
    "swin-patch-padding": swin_patch_padding,
    "swin-window-padding": swin_window_padding,
    "swin-merge-padding": swin_merge_padding,
    "swin-shift": swin_shift,
    "mobilevit-patches": mobilevit_patches,
    "mobilevitv2-patches": mobilevitv2_patches,
    "grouped-mm": Experts,
}
"""For each torch patch and translation, a module that uses its construct on images of any size."""

SIZES = ((2, 3, 8, 12), (3, 3, 11, 17), (1, 3, 13, 10))
"""The example, and where a graph that kept its branches is wrong."""


def _problem(model: ir.Model, cases: list[tuple[dict[str, Array], Array]], folder: Path) -> str | None:
    """What is wrong with the first output of a graph, or None."""
    ir.save(model, folder / "model.onnx")
    try:
        with open_session(
            artifact_of_graph(folder / "model.onnx"),
            PlanOptions(device="cpu"),
            SessionOptions(verify=False, warm_up=False),
        ) as session:
            for feeds, expected in cases:
                actual = next(iter(session.run(feeds).values()))
                difference = compare_tensor("output", expected, actual, TOLERANCES)
                if not difference.within:
                    return str(difference)
    except InferError as error:
        return str(error)
    return None


def _export(module: nn.Module, example: torch.Tensor, active: Active) -> ir.Model:
    shapes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=20,
            input_names=[INPUT.format(0)],
            output_names=[OUTPUT.format(0)],
            dynamic_shapes=((shapes,),) if isinstance(module, Calls) else (shapes,),
            custom_translation_table=dict(active.translations),
            verbose=False,
        )
    assert program is not None
    return program.model


def _module_and_cases(name: str) -> tuple[nn.Module, torch.Tensor, list[tuple[dict[str, Array], Array]]]:
    torch.manual_seed(0)
    module = CASES[name]().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    inputs = [torch.randn(size) for size in SIZES]
    cases = [({INPUT.format(0): x.numpy()}, module(x).numpy()) for x in inputs]
    return module, inputs[0], cases


_SLOW = {"mobilevit-patches", "mobilevitv2-patches", *(name for name in CASES if name.startswith("swin-"))}
_PARAMETERS = [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in CASES]


def test_every_torch_patch_has_a_case() -> None:
    """A patch without a proof that it is needed does not land."""
    assert {*CASES, PACKED_STATES.name} == {patch.name for patch in TORCH_PATCHES} | set(TRANSLATIONS)


@pytest.mark.parametrize("name", _PARAMETERS)
def test_torch_patch_mends(name: str, tmp_path: Path) -> None:
    """With the patches the graph equals the unpatched original at all sizes, and the patch is named."""
    module, example, cases = _module_and_cases(name)
    with torch_patches() as active:
        model = _export(module, example, active)
    assert name in active.used
    assert _problem(model, cases, tmp_path) is None


@pytest.mark.parametrize("name", _PARAMETERS)
def test_torch_patch_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all patches but this, there is no graph, or it fails or answers wrongly at some size."""
    module, example, cases = _module_and_cases(name)
    monkeypatch.setattr(patches, "TORCH_PATCHES", tuple(p for p in TORCH_PATCHES if p.name != name))
    monkeypatch.setattr(patches, "TRANSLATIONS", {n: t for n, t in TRANSLATIONS.items() if n != name})
    try:
        with torch_patches() as active:
            model = _export(module, example, active)
    except torch.onnx.errors.OnnxExporterError:
        return
    assert _problem(model, cases, tmp_path) is not None


class LastState(nn.Module):
    """A recurrent layer that is fed packed sequences, and of which the last state is used."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False
        )
        _, states = self.rnn(packed)
        last: torch.Tensor = states[0][-1] if isinstance(states, tuple) else states[-1]
        return last


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_states_mends(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    """With the patch, the last state at each row's own length is torch's, also at other batch sizes."""
    torch.manual_seed(0)
    module = LastState(kind(6, 4, batch_first=True)).eval()
    example = {"x": torch.randn(3, 5, 6), "lengths": torch.tensor([2, 5, 3])}
    artifact = converters.convert(module, tmp_path / "p.infer", example_inputs=example)
    assert artifact.manifest.provenance.patches == ("packed-states",)
    x, lengths = torch.randn(4, 5, 6), torch.tensor([1, 5, 4, 2])
    with infer.load(artifact.path) as session:
        ours = session.run({"x": x.numpy(), "lengths": lengths.numpy()})["output"]
    with torch.no_grad():
        np.testing.assert_allclose(ours, module(x, lengths), atol=1e-6)


def test_packed_states_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the patch no exporter converts such a model."""
    monkeypatch.setattr(patches, "TORCH_PATCHES", tuple(p for p in TORCH_PATCHES if p is not PACKED_STATES))
    example = {"x": torch.randn(3, 5, 6), "lengths": torch.tensor([2, 5, 3])}
    with pytest.raises(ConversionError, match="no exporter could convert"):
        converters.convert(
            LastState(nn.LSTM(6, 4, batch_first=True)), tmp_path / "p.infer", example_inputs=example
        )


def test_patches_leave_nothing_behind() -> None:
    """After an export, also one that failed, every replaced function is the original again."""
    before = modeling_swin.SwinLayer.set_shift_and_window_size
    with torch_patches():
        assert modeling_swin.SwinLayer.set_shift_and_window_size is not before
    with pytest.raises(ZeroDivisionError), torch_patches():
        raise ZeroDivisionError
    assert modeling_swin.SwinLayer.set_shift_and_window_size is before
    assert torch.overrides._len_torch_function_stack() == 0


def test_torchs_own_tables_hold_no_patch() -> None:
    """A table of torch's functions that is made during an export is right after it.

    `torch.device` as a context reads such a table; with a replacement in it, what `torch.tensor`
    makes under `torch.device("meta")` is real, and a model loaded by transformers keeps the memory
    that nobody filled.
    """
    torch.utils._device._device_constructors.cache_clear()
    with torch_patches(), torch.device("meta"):
        assert torch.tensor([1.0]).is_meta
    with torch.device("meta"):
        assert torch.tensor([1.0]).is_meta


def test_patch_leaves_ordinary_calls_alone() -> None:
    """Where a patch does not apply, the original answers and the patch is not named."""
    x = torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, 3)
    used: set[str] = set()
    with ADAPTIVE_POOL.active(used):
        assert torch.equal(torch.nn.functional.adaptive_avg_pool2d(x, 3), expected)
    assert used == set()


def test_patches_do_not_touch_what_is_not_imported() -> None:
    """A patch of a module that is not loaded does nothing, and does not load it."""
    patch = TorchPatch("absent", ("a_module_that_does_not_exist:function",), lambda original: None)
    before = set(sys.modules)
    with patch.active(set()):
        assert set(sys.modules) == before


@pytest.mark.parametrize(("size", "out"), [((7, 5), 3), ((8, 6), (4, 2)), ((5, 9), (2, 7))])
def test_adaptive_pool_equals_torch(size: tuple[int, int], out: Any) -> None:
    """The replacement is torch's pooling, at sizes that are no multiple of the output's, too."""
    x = torch.randn(2, 3, *size)
    ours = ADAPTIVE_POOL.replacement(None, x, out)
    torch.testing.assert_close(ours, torch.nn.functional.adaptive_avg_pool2d(x, out))


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_open_linspace_equals_torch(steps: int) -> None:
    """The replacement is torch's linspace, bit for bit, also where it is a single value."""
    ours = OPEN_LINSPACE.replacement(None, 0.5, 7.25, steps)
    assert torch.equal(ours, torch.linspace(0.5, 7.25, steps))


def _graph(node: str, inputs: str) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]>\ngraph ({inputs}) => (float[B,2,S,4] y)\n{{ {node} }}'
    )


def _rotary() -> tuple[ir.Model, dict[str, Array], Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 5, 4)).astype(np.float32)
    angle = rng.standard_normal((1, 5, 2)).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    # the rotation of RoFormer (arxiv.org/abs/2104.09864), halves side by side
    left, right = x[..., :2], x[..., 2:]
    expected = np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    model = _graph("y = RotaryEmbedding(x, c, s)", "float[B,2,S,4] x, float[1,S,2] c, float[1,S,2] s")
    return model, {"x": x, "c": cos, "s": sin}, expected


def _masked_attention() -> tuple[ir.Model, dict[str, Array], Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 5, 4)).astype(np.float32)
    mask = np.ones((3, 1, 1, 5), dtype=bool)
    mask[1, ..., 3:] = False
    scores = np.where(mask, x @ x.swapaxes(-1, -2) / 2, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True)) @ x
    model = _graph("y = Attention(x, x, x, mask)", "float[B,2,S,4] x, bool[B,1,1,S] mask")
    return model, {"x": x, "mask": mask}, expected.astype(np.float32)


GRAPH_CASES: dict[str, Callable[[], tuple[ir.Model, dict[str, Array], Array]]] = {
    "rotary-cache-rows": _rotary,
    "attention-mask-rows": _masked_attention,
}


def test_every_graph_patch_has_a_case() -> None:
    """A patch without a proof that it is needed does not land."""
    assert set(GRAPH_CASES) == set(GRAPH_PATCHES)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_graph_patch_mends(name: str, tmp_path: Path) -> None:
    """ONNX Runtime refuses the graph, then answers as the formula does; a second time changes nothing."""
    model, feeds, expected = GRAPH_CASES[name]()
    assert _problem(model, [(feeds, expected)], tmp_path) is not None
    assert GRAPH_PATCHES[name](model)
    assert _problem(model, [(feeds, expected)], tmp_path) is None
    assert name == "rotary-cache-rows" or not GRAPH_PATCHES[name](model)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_graph_patch_declines(name: str) -> None:
    """A cache or mask that has all its rows is left as it is."""
    model = {
        "rotary-cache-rows": lambda: _graph(
            "y = RotaryEmbedding(x, c, s)", "float[B,2,S,4] x, float[B,S,2] c, float[B,S,2] s"
        ),
        "attention-mask-rows": lambda: _graph(
            "y = Attention(x, x, x, mask)", "float[B,2,S,4] x, bool[B,1,S,S] mask"
        ),
    }[name]()
    assert not GRAPH_PATCHES[name](model)
