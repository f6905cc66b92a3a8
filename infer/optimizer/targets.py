"""What can help where: for each kind of backend and device, the passes and recipes that its kernels serve.

A target is a row of this table, so that another kernel library is one more row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from infer.machine import Machine
from infer.measure.feeds import Feeds
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.passes.attention import attention, guarded_attention
from infer.optimizer.passes.skip_norm import skip_norm
from infer.optimizer.quantization import dynamic, static
from infer.optimizer.quantization.calibration import METHODS, Observed, observe
from infer.optimizer.quantization.halves import halve
from infer.optimizer.quantization.smoothing import channel_maxima, smooth
from infer.signature import Array

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
     "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul"}
)  # fmt: skip


_LEAST_OPSET = 13
"""Of scales for each channel."""


@dataclass(frozen=True)
class Given:
    """What a recipe may use: feeds to calibrate with, and whether this processor's int8 products saturate
    unless weights are bounded (see `quantization.weights`)."""

    calibration: Sequence[Feeds]
    pair_bounded: bool
    _seen: dict[str, Observed] = field(default_factory=dict)
    _maxima: dict[str, Array] = field(default_factory=dict)

    def observe(self, model: ir.Model, tensors: Sequence[str]) -> Mapping[str, Observed]:
        """What these tensors of the reference's graph hold, each found once."""
        if missing := [name for name in tensors if name not in self._seen]:
            self._seen.update(observe(model, missing, self.calibration))
        return self._seen

    def maxima(self, model: ir.Model, tensors: Sequence[str]) -> Mapping[str, Array]:
        """The largest magnitude of each channel of these tensors, each found once."""
        if missing := [name for name in tensors if name not in self._maxima]:
            self._maxima.update(channel_maxima(model, missing, self.calibration))
        return self._maxima


@dataclass(frozen=True)
class Recipe:
    """A way to make a variant that approximates.

    Attributes:
        precision: of the variant; "{}" stands for how it was made.
        ways: how it can be made: the one whose answers to calibration feeds are nearest is tried.
        candidates: the nodes it could change, which a search may keep in float.
        build: changes the model in one of the ways, but for the nodes of these names.
        for_size: whether it makes files smaller, and nothing faster.
    """

    name: str
    precision: str
    ways: tuple[str, ...]
    candidates: Callable[[ir.Model], list[ir.Node]]
    build: Callable[[ir.Model, Given, str, Collection[str]], PassResult]
    for_size: bool = False


@dataclass(frozen=True)
class Target:
    """Passes that keep the numbers, in the order in which they are tried, and recipes that do not."""

    backend: str
    device: str
    passes: dict[str, Pass]
    recipes: tuple[Recipe, ...] = ()


_SMOOTHED = {"as they come": 0.0, "smoothed by 0.3": 0.3, "smoothed by 0.5": 0.5, "smoothed by 0.7": 0.7}
"""How activations are evened out before they are quantized → alpha of `quantization.smoothing`."""


def _dynamic(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    if alpha := _SMOOTHED[way]:
        chosen = [node for node in dynamic.candidates(model) if node.name not in keep]
        smooth(model, chosen, lambda tensors: given.maxima(model, tensors), alpha)
    return dynamic.quantize_dynamically(model, keep, pair_bounded=given.pair_bounded)


def _none(model: ir.Model) -> list[ir.Node]:
    """Of a recipe that changes no nodes, there is none to be kept in float."""
    return []


def _halved(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    return halve(model)


def _dynamic_and_halved(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    result = _dynamic(model, given, way, keep)
    halve(model)
    return result


def _static(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    return static.quantize_statically(
        model, lambda tensors: given.observe(model, tensors), way, keep, pair_bounded=given.pair_bounded
    )


_TRANSFORMER_PASSES: dict[str, Pass] = {
    "attention": attention,
    "guarded-attention": guarded_attention,
    "skip-norm": skip_norm,
}

INSTEAD = {"guarded-attention": "attention"}
"""Pass → the one before it that it is tried in the place of, where that one's answers differ."""

_STATIC = "int8 (QDQ, per channel, ranges by {})"


def _static_recipe(name: str) -> Recipe:
    """Convolutions and products in int8, by ranges that calibration found."""
    return Recipe(name, _STATIC, tuple(METHODS), static.candidates, _static)


TARGETS: tuple[Target, ...] = (
    Target(
        "onnxruntime",
        "cpu",
        _TRANSFORMER_PASSES,
        (
            _static_recipe("int8-static"),
            # products in int8, activations by the range of each run
            Recipe(
                "int8-dynamic",
                "int8 (dynamic, per channel, activations {})",
                tuple(_SMOOTHED),
                dynamic.candidates,
                _dynamic,
            ),
            Recipe(
                "half",
                "float32, weights in half precision",
                ("as they are",),
                _none,
                _halved,
                for_size=True,
            ),
            Recipe(
                "int8-dynamic-half",
                "int8 (dynamic, per channel, activations {}), other weights in half precision",
                tuple(_SMOOTHED),
                dynamic.candidates,
                _dynamic_and_halved,
                for_size=True,
            ),
        ),
    ),
    Target("openvino", "cpu", {}, (_static_recipe("openvino-int8-static"),)),
    Target("onnxruntime", "cuda", _TRANSFORMER_PASSES),
)


def targets_of(device: str) -> tuple[Target, ...]:
    """The rows for a device."""
    return tuple(target for target in TARGETS if target.device == device.partition(":")[0])


def unfit(recipe: Recipe, model: ir.Model) -> str | None:
    """Why a recipe is not worth a try on this graph, or None."""
    if recipe.candidates is _none:
        return None
    if done := sorted({node.op_type for node in model.graph} & _QUANTIZED):
        return f"the graph is quantized already ({', '.join(done)})"
    opset = model.opset_imports.get("", 0)
    if opset < _LEAST_OPSET:
        return f"int8 operators need opset {_LEAST_OPSET}, and the graph has {opset}; export it again"
    nodes = recipe.candidates(model)
    if not nodes:
        return "it finds nothing to quantize"
    convolutions = any(node.op_type == "Conv" for node in nodes)
    if recipe.precision == _STATIC and not convolutions:
        return "without convolutions, ranges of each run are closer than fixed ones"
    return None


def saturates(machine: Machine) -> bool:
    """Whether products of u8 and s8 add up in 16 bits here: x86 without VNNI."""
    isa = set(machine.isa)
    return "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni", "amx_int8"}
