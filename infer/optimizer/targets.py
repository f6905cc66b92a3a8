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
from infer.optimizer.passes.attention import attention
from infer.optimizer.passes.skip_norm import skip_norm
from infer.optimizer.quantization import dynamic, static
from infer.optimizer.quantization.calibration import ActivationRange, ranges
from infer.optimizer.quantization.smoothing import smooth

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
    _known: dict[str, dict[str, ActivationRange]] = field(default_factory=dict)

    def ranges(self, model: ir.Model, tensors: Sequence[str], method: str) -> Mapping[str, ActivationRange]:
        """Of these tensors of the reference's graph, each found once."""
        known = self._known.setdefault(method, {})
        if missing := [name for name in tensors if name not in known]:
            known.update(ranges(model, missing, self.calibration, method=method))
        return known


@dataclass(frozen=True)
class Recipe:
    """A way to make a variant that approximates.

    Attributes:
        candidates: the nodes it could change, which a search may keep in float.
        build: changes the model, but for the nodes of these names.
    """

    name: str
    precision: str
    about: str
    candidates: Callable[[ir.Model], list[ir.Node]]
    build: Callable[[ir.Model, Given, Collection[str]], PassResult]


@dataclass(frozen=True)
class Target:
    """Passes that keep the numbers, in the order in which they are tried, and recipes that do not."""

    backend: str
    device: str
    passes: dict[str, Pass]
    recipes: tuple[Recipe, ...] = ()


def _dynamic(model: ir.Model, given: Given, keep: Collection[str]) -> PassResult:
    return dynamic.quantize_dynamically(model, keep, pair_bounded=given.pair_bounded)


def _smoothed(model: ir.Model, given: Given, keep: Collection[str]) -> PassResult:
    chosen = [node for node in dynamic.candidates(model) if node.name not in keep]
    smooth(model, chosen, given.calibration)
    return _dynamic(model, given, keep)


def _static(method: str) -> Callable[[ir.Model, Given, Collection[str]], PassResult]:
    def build(model: ir.Model, given: Given, keep: Collection[str]) -> PassResult:
        return static.quantize_statically(
            model,
            lambda tensors: given.ranges(model, tensors, method),
            keep,
            pair_bounded=given.pair_bounded,
        )

    return build


CENSUS = {"attention": "attention"}
"""Pass → what it must find all of, as the census of the original counts it."""

_TRANSFORMER_PASSES: dict[str, Pass] = {"attention": attention, "skip-norm": skip_norm}

_STATIC_INT8 = "int8 (QDQ, per channel, calibrated)"


def _static_recipes(prefix: str) -> tuple[Recipe, ...]:
    return (
        Recipe(
            f"{prefix}int8-static",
            _STATIC_INT8,
            "convolutions and products in int8, ranges by least squared error",
            static.candidates,
            _static("mse"),
        ),
        Recipe(
            f"{prefix}int8-static-minmax",
            _STATIC_INT8,
            "convolutions and products in int8, ranges by extremes",
            static.candidates,
            _static("minmax"),
        ),
    )


TARGETS: tuple[Target, ...] = (
    Target(
        "onnxruntime",
        "cpu",
        _TRANSFORMER_PASSES,
        (
            *_static_recipes(""),
            Recipe(
                "int8-dynamic",
                "int8 (dynamic, per channel)",
                "products in int8, activations by the range of each run",
                dynamic.candidates,
                _dynamic,
            ),
            Recipe(
                "int8-smooth",
                "int8 (dynamic, per channel, smoothed)",
                "the same, with channels of activations evened out first",
                dynamic.candidates,
                _smoothed,
            ),
        ),
    ),
    Target("openvino", "cpu", {}, _static_recipes("openvino-")),
    Target("onnxruntime", "cuda", _TRANSFORMER_PASSES),
)


def targets_of(device: str) -> tuple[Target, ...]:
    """The rows for a device."""
    return tuple(target for target in TARGETS if target.device == device.partition(":")[0])


def unfit(recipe: Recipe, model: ir.Model) -> str | None:
    """Why a recipe is not worth a try on this graph, or None."""
    if done := sorted({node.op_type for node in model.graph} & _QUANTIZED):
        return f"the graph is quantized already ({', '.join(done)})"
    opset = model.opset_imports.get("", 0)
    if opset < _LEAST_OPSET:
        return f"int8 operators need opset {_LEAST_OPSET}, and the graph has {opset}; export it again"
    nodes = recipe.candidates(model)
    if not nodes:
        return "it finds nothing to quantize"
    convolutions = any(node.op_type == "Conv" for node in nodes)
    if recipe.precision == _STATIC_INT8 and not convolutions:
        return "without convolutions, ranges of each run are closer than fixed ones"
    return None


def saturates(machine: Machine) -> bool:
    """Whether products of u8 and s8 add up in 16 bits here: x86 without VNNI."""
    isa = set(machine.isa)
    return "avx2" in isa and not isa & {"avx512_vnni", "avx_vnni", "amx_int8"}
