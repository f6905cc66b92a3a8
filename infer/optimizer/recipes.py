"""Ways to make a variant that approximates: what each changes, and on which graphs.

On CPUs, for convolutions there are fixed ranges; for products ranges of each run, and with few rows
weights alone; for tables rows of eight bits. On GPUs there is half precision. What is `for_size` makes
files smaller, and nothing faster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir

from infer.feeds import Feeds
from infer.optimizer.passes import PassResult, turned_keys
from infer.optimizer.quantization import dynamic, floats, recurrent, static, tables
from infer.optimizer.quantization.blocks import Blocks
from infer.optimizer.quantization.calibration import METHODS, Observed, observe
from infer.optimizer.quantization.halves import halve
from infer.optimizer.quantization.smoothing import channel_maxima, smooth
from infer.optimizer.quantization.weight_only import (
    compensated_blocks,
    quantize_in_blocks,
    rounded_blocks,
)
from infer.optimizer.rewriting import tidy
from infer.optimizer.verdict import INT8_PRODUCTS
from infer.signature import Array

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
     "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
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
    _blocks: dict[str, Blocks] = field(default_factory=dict)

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

    def int4(self, model: ir.Model) -> Mapping[str, Blocks]:
        """The weights of all products of the reference's graph in four bits, found once: it takes long."""
        if not self._blocks:
            found = compensated_blocks(model, dynamic.candidates(model), 4, self.calibration)
            self._blocks.update(found)
        return self._blocks


def _any(model: ir.Model) -> str | None:
    """For recipes that are worth a try on every graph."""
    return None


_Build = Callable[[ir.Model, Given, str, Collection[str]], PassResult]


@dataclass(frozen=True)
class Recipe:
    """A way to make a variant that approximates.

    Attributes:
        precision: of the variant; "{}" stands for how it was made.
        ways: how it can be made: the one whose answers to calibration feeds are nearest is tried.
        candidates: the nodes it could change, which a search may keep in float.
        build: changes the model in one of the ways, but for the nodes of these names.
        for_size: whether it makes files smaller, and nothing faster.
        unfit: why it is not worth a try on a graph, or None.
        least_opset: that has the operators it writes.
    """

    name: str
    precision: str
    ways: tuple[str, ...]
    candidates: Callable[[ir.Model], list[ir.Node]]
    build: _Build
    for_size: bool = False
    unfit: Callable[[ir.Model], str | None] = _any
    least_opset: int = _LEAST_OPSET

    @property
    def has_int8_products(self) -> bool:
        """Whether what it makes multiplies integers, as of `Verdict`."""
        return self.precision.startswith(INT8_PRODUCTS)

    @property
    def is_divisible(self) -> bool:
        """Whether some nodes can be spared; not of one that changes no nodes."""
        return self.candidates is not _none


_ONE_WAY = ("as they are",)

_SMOOTHED = {"as they come": 0.0, "smoothed by 0.3": 0.3, "smoothed by 0.5": 0.5, "smoothed by 0.7": 0.7}
"""How activations are evened out before they are quantized → alpha of `quantization.smoothing`."""


def _dynamic(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    if alpha := _SMOOTHED[way]:
        chosen = [node for node in dynamic.candidates(model) if node.name not in keep]
        smooth(model, chosen, lambda tensors: given.maxima(model, tensors), alpha)
    products = dynamic.quantize_dynamically(model, keep, pair_bounded=given.pair_bounded)
    return products + recurrent.quantize_recurrent(model, keep, pair_bounded=given.pair_bounded)


def _dynamic_candidates(model: ir.Model) -> list[ir.Node]:
    return [*dynamic.candidates(model), *recurrent.candidates(model)]


def _none(model: ir.Model) -> list[ir.Node]:
    """Of a recipe that changes no nodes, there is none to be kept in float."""
    return []


def _halved(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    return halve(model)


def _dynamic_and_halved(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    result = _dynamic(model, given, way, keep)
    halve(model)
    return result


def _int8_weights(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    chosen = [node for node in dynamic.candidates(model) if node.name not in keep]
    return quantize_in_blocks(model, rounded_blocks(chosen, 8), 8)


def _int4_weights(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    """What four bits harm the most has eight, with which answers hardly move."""
    spared = [node for node in dynamic.candidates(model) if node.name in keep]
    return quantize_in_blocks(model, {**given.int4(model), **rounded_blocks(spared, 8)}, 4)


def _tables(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    return tables.quantize_tables(model, keep)


def _products_and_tables(model: ir.Model) -> list[ir.Node]:
    return [*dynamic.candidates(model), *tables.candidates(model)]


def _dynamic_and_tables(model: ir.Model) -> list[ir.Node]:
    return [*_dynamic_candidates(model), *tables.candidates(model)]


def _with_tables(products: _Build) -> _Build:
    """All large weights: those of products, tables in eight bits, and the others in half precision."""

    def build(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
        result = products(model, given, way, keep) + tables.quantize_tables(model, keep)
        halve(model)
        return result

    return build


def _static(
    model: ir.Model,
    given: Given,
    way: str,
    keep: Collection[str],
    *,
    between: bool = True,
    transposed: bool = False,
    step_by_step: bool = True,
    signed: bool = False,
    scores: Collection[ir.Node] = (),
) -> PassResult:
    return static.quantize_statically(
        model,
        lambda tensors: given.observe(model, tensors),
        way,
        keep,
        pair_bounded=given.pair_bounded,
        between=between,
        transposed=transposed,
        step_by_step=step_by_step,
        signed=signed,
        scores=scores,
    )


_FIXED = {
    f"{method}, activations {how}": (method, alpha)
    for method in ("extremes", "squared error")
    for how, alpha in _SMOOTHED.items()
    if alpha != 0.3
}
"""How fixed ranges of products are chosen → a method of `calibration`, alpha of `smoothing`."""


def _static_products(
    model: ir.Model, given: Given, way: str, keep: Collection[str], *, signed: bool = False
) -> PassResult:
    method, alpha = _FIXED[way]
    for node in static.candidates(model):
        if node.op_type == "Gemm":
            dynamic.as_product(node)
    tidy(model)
    if alpha:
        # those of one input are smoothed together, whichever are spared: so ranges stay what was observed
        fed = {node.inputs[0] for node in static.candidates(model) if node.name not in keep}
        chosen = [node for node in static.candidates(model) if node.inputs[0] in fed]
        smooth(model, chosen, lambda tensors: given.maxima(model, tensors), alpha)
    if given.pair_bounded:
        return _static(model, given, method, keep, between=False, signed=signed)
    attended, scores = turned_keys.products_of_keys(model, keep)
    return attended + _static(model, given, method, keep, between=False, signed=signed, scores=scores)


def _products_and_scores(model: ir.Model) -> list[ir.Node]:
    return [*static.candidates(model), *turned_keys.candidates(model)]


def _float16(model: ir.Model, given: Given, way: str, keep: Collection[str]) -> PassResult:
    return floats.in_half_precision(model, keep)


LIKE = {
    "int4-weights": "int8-weights",
    "int4-weights-tables": "int8-weights",
    "openvino-int8-static-signed": "openvino-int8-static",
    "openvino-int8-products-signed": "openvino-int8-products",
}
"""Recipe → the one before it with the same kernels: where that is much slower, so is this."""

_MOSTLY = 0.5


def _few_convolutions(model: ir.Model) -> str | None:
    share = _share_of_convolutions(model)
    if share >= 0.25:
        return None
    return "nearly all are products, for which ranges of each run are closer than fixed ones"


def _mostly_convolutions(model: ir.Model) -> str | None:
    if _share_of_convolutions(model) < 0.5:
        return None
    return "most are convolutions, and between these tensors stay in eight bits"


def _share_of_convolutions(model: ir.Model) -> float:
    """Of the nodes that could be quantized."""
    kinds = [node.op_type == "Conv" for node in static.candidates(model)]
    return sum(kinds) / max(1, len(kinds))


def _few_tables(model: ir.Model) -> str | None:
    share = tables.share(model)
    return None if share > _MOSTLY else f"tables are {share:.0%} of the weights, and are read the least"


def static_recipe(
    name: str, *, transposed: bool = False, step_by_step: bool = True, signed: bool = False
) -> Recipe:
    """Convolutions and products in int8, by ranges that calibration found; `transposed` convolutions, too,
    if there are kernels for them; `step_by_step` as the library needs it; with `signed` values where some
    are negative."""
    return Recipe(
        name,
        _FIXED_RANGES[signed],
        tuple(METHODS),
        partial(static.candidates, transposed=transposed),
        partial(_static, transposed=transposed, step_by_step=step_by_step, signed=signed),
        unfit=_few_convolutions,
    )


def static_products_recipe(name: str, *, signed: bool = False) -> Recipe:
    """Products in int8, of queries and keys, too, and the convolutions before them, by ranges that
    calibration found; sums and norms in float; with `signed` values where some are negative."""
    build = partial(_static_products, signed=signed)
    return Recipe(
        name, _FIXED_RANGES[signed], tuple(_FIXED), _products_and_scores, build, unfit=_mostly_convolutions
    )


_FIXED_RANGES = (
    "int8 (QDQ, per channel, ranges by {})",
    "int8 (QDQ, per channel, ranges to both sides alike by {})",
)


ON_CPU = (
    static_recipe("int8-static"),
    # products and recurrent layers in int8, activations by the range of each run
    Recipe(
        "int8-dynamic",
        "int8 (dynamic, per channel, activations {})",
        tuple(_SMOOTHED),
        _dynamic_candidates,
        _dynamic,
    ),
    # products of few rows, as in generation
    Recipe(
        "int8-weights",
        "int8 weights (blocks of 32)",
        _ONE_WAY,
        dynamic.candidates,
        _int8_weights,
    ),
    Recipe(
        "int4-weights",
        "int4 weights (blocks of 32, errors compensated)",
        _ONE_WAY,
        dynamic.candidates,
        _int4_weights,
    ),
    # models that are nearly all tables, as of recommendation
    Recipe(
        "int8-tables",
        "float32, tables in int8 (per row)",
        _ONE_WAY,
        tables.candidates,
        _tables,
        unfit=_few_tables,
    ),
    Recipe(
        "half",
        "float32, weights in half precision",
        _ONE_WAY,
        _none,
        _halved,
        for_size=True,
    ),
    Recipe(
        "int8-dynamic-half",
        "int8 (dynamic, per channel, activations {}), other weights in half precision",
        tuple(_SMOOTHED),
        _dynamic_candidates,
        _dynamic_and_halved,
        for_size=True,
    ),
    Recipe(
        "int8-dynamic-tables",
        "int8 (dynamic, per channel, activations {}; tables per row), other weights in half precision",
        tuple(_SMOOTHED),
        _dynamic_and_tables,
        _with_tables(_dynamic),
        for_size=True,
    ),
    Recipe(
        "int4-weights-tables",
        "int4 weights (blocks of 32, errors compensated), tables in int8, others in half precision",
        _ONE_WAY,
        _products_and_tables,
        _with_tables(_int4_weights),
        for_size=True,
    ),
)
"""Those of ONNX Runtime, in the order in which they are tried."""


ON_CUDA = (Recipe("float16", "float16", _ONE_WAY, floats.candidates, _float16, least_opset=0),)
"""Those of ONNX Runtime on NVIDIA's GPUs. They were run on CPUs alone."""


def unfit(recipe: Recipe, model: ir.Model) -> str | None:
    """Why a recipe is not worth a try on this graph, or None."""
    if not recipe.is_divisible:
        return None
    if done := sorted({node.op_type for node in model.graph} & _QUANTIZED):
        return f"the graph is quantized already ({', '.join(done)})"
    opset = model.opset_imports.get("", 0)
    if opset < recipe.least_opset:
        return f"int8 operators need opset {recipe.least_opset}, and the graph has {opset}; export it again"
    if not recipe.candidates(model):
        return "it finds nothing to change"
    return recipe.unfit(model)
