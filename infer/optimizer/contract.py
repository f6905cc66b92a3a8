"""The fusion contract: what the original does, held against what is one node in the graph that is shipped.

Attention is what passes rewrite. Norms and activations the backend makes whole itself while it loads a
graph, batch norms it folds into the convolutions before them, and activations it computes with these. So
all are counted in what it makes of the graph that is shipped, whatever a pass did on the way there."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from infer.backends.ort import save_optimized
from infer.optimizer.rewriting import CONTRIB, constant
from infer.optimizer.verdict import Verdict
from infer.plan import Plan

REWRITTEN = {"attention": "attention", "guarded-attention": "attention"}
"""Pass → what it must find all of, or another pass of that, as the census of the original counts it."""

_HELPED = {"group-norm": "norm"}
"""Pass → what it rewrites some of, where the backend makes whole the rest itself."""

_KERNELS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})
"""ONNX Runtime's own operators for attention, which the passes write."""

_NORMS = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
     "SkipSimplifiedLayerNormalization", "RMSNormalization", "InstanceNormalization",
     "GroupNormalization", "GroupNorm", "EmbedLayerNormalization"}
)  # fmt: skip
_ACTIVATIONS = frozenset(
    {"Relu", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Elu", "LeakyRelu", "HardSwish", "HardSigmoid",
     "Mish", "Softplus", "Selu", "Swish"}
)  # fmt: skip
_BOUNDS = ((0.0, 6.0), (-1.0, 1.0))
"""Of a Clip that is ReLU6 or the hard tanh, which the census counts; any other Clip is no activation."""

_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_WEIGHTED = _CONVOLUTIONS | {"ConvTranspose", "Gemm", "MatMul"}
_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "ReorderOutput"})
_FOLDABLE, _ALONE = "batch norm", "batch norm with nothing to fold into"
_FUSES_INTO_CONV = frozenset({"Relu", "LeakyRelu", "HardSigmoid", "Clip", "Sigmoid", "Tanh"})
"""What ONNX Runtime's kernels for convolutions compute along with them, in float32."""

_WRITTEN_OUT = {
    "norm": ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Sqrt", "LpNormalization"),
    "activation": ("Erf", "Sigmoid", "Tanh", "Exp", "Softplus", "Clip", "Max", "Where", "PRelu"),
}
"""Operators that are left where something was not made whole."""


@dataclass(frozen=True)
class Counted:
    """What is in the graph that is shipped, as ONNX Runtime optimized it.

    Attributes:
        whole: "attention", "norm", "activation" → how many are one node, or a part of one.
        left: kind → what is there instead, in words → how often.
        instead: why what passes rewrote is not shipped, if a measurement is the reason.
        untold: why nothing could be counted, if so.
    """

    whole: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    instead: str = ""
    untold: str = ""


@dataclass(frozen=True)
class Shortfall:
    """Something that the original does more often than the shipped graph has it fused.

    Attributes:
        excused: whether that is the best there is: the fused form answered rightly, was measured and was
            not faster here, or nothing is left in the graph that could be fused. Anything else breaks the
            contract.
    """

    said: str
    excused: bool = False

    def __str__(self) -> str:
        return self.said


def whole(graph: Path, plan: Plan) -> Counted:
    """What is fused when ONNX Runtime has optimized a graph as `plan` says. Raises `BackendError`."""
    with tempfile.TemporaryDirectory(prefix="infer-contract-") as folder:
        path = Path(folder) / "optimized.onnx"
        save_optimized(graph, plan, path, packed=False)
        return count(ir.load(path))


def count(model: ir.Model) -> Counted:
    """What is fused in a graph that the backend optimized."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    found = {
        "attention": sum(node.domain == CONTRIB and node.op_type in _KERNELS for node in nodes),
        "norm": sum(node.op_type in _NORMS for node in nodes),
        "activation": sum(_activates(node) for node in nodes),
    }
    left: dict[str, Counter[str]] = {kind: Counter() for kind in ("attention", *_WRITTEN_OUT)}
    left["attention"]["ONNX's own Attention"] = sum(
        node.domain == "" and node.op_type == "Attention" for node in nodes
    )
    left["attention"]["Softmax"] = sum(node.op_type == "Softmax" for node in nodes)
    for kind, operators in _WRITTEN_OUT.items():
        for node in nodes:
            if node.op_type in operators and not _activates(node):
                left[kind][node.op_type] += 1
    left[_FOLDABLE], left[_ALONE], left["convolution"] = Counter(), Counter(), Counter()
    for node in nodes:
        if node.op_type == "BatchNormalization":
            before = _before(node)
            left[_FOLDABLE if before in _WEIGHTED else _ALONE][f"behind {before}"] += 1
        elif _could_be_computed_along(node):
            left["convolution"][node.op_type] += 1
    return Counted(found, {kind: +counter for kind, counter in left.items()})


def _activates(node: ir.Node) -> bool:
    """Whether a node is an activation as the census counts them, or computes one along with a product."""
    along = node.attributes.get("activation")
    if along is not None:
        name, bounds = along.as_string(), node.attributes.get_floats("activation_params", [])
        return name in _ACTIVATIONS or (name == "Clip" and tuple(bounds) in _BOUNDS)
    if node.op_type == "Clip":
        return _bounds(node) in _BOUNDS
    return node.op_type in _ACTIVATIONS


def _bounds(node: ir.Node) -> tuple[float | None, ...]:
    """Between what a Clip keeps values, None where that is computed or open."""
    found: list[float | None] = []
    for place, name in ((1, "min"), (2, "max")):
        array = constant(node.inputs[place]) if len(node.inputs) > place else None
        found.append(node.attributes.get_float(name) if array is None else float(array.reshape(-1)[0]))
    return tuple(found)


def _before(node: ir.Node) -> str:
    """The operator whose values a batch norm takes, perhaps in another shape."""
    value = node.inputs[0]
    while value is not None and (made_by := value.producer()) is not None:
        if len(value.uses()) > 1 or value.is_graph_output():
            return f"{made_by.op_type} that is used elsewhere, too"
        if made_by.op_type not in _RESHAPES:
            return made_by.op_type
        value = made_by.inputs[0]
    return "an input"


def _could_be_computed_along(node: ir.Node) -> bool:
    """Whether an activation follows a convolution that has none, alone, and there is a kernel for both."""
    value = node.inputs[0] if node.inputs else None
    made_by = None if value is None else value.producer()
    if value is None or made_by is None or made_by.op_type not in _CONVOLUTIONS:
        return False
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    there_is = node.op_type in _FUSES_INTO_CONV and (node.op_type != "Clip" or None not in _bounds(node))
    return alone and there_is and "activation" not in made_by.attributes


def shortfalls(
    verdicts: Sequence[Verdict], census: Mapping[str, int], counted: Counted, unfinished: str = ""
) -> list[Shortfall]:
    """What the original does more often than it is fused in the graph that is shipped, and why.

    Args:
        unfinished: why not all was tried, if so.
    """
    if not census:
        why = "nothing of the original was counted (a plain graph or TorchScript)"
        return [Shortfall(f"{why}, so there is nothing to hold the graph against")]
    if counted.untold:
        return [Shortfall(f"what is fused was not counted: {counted.untold}")]
    found = [
        _of_passes(kind, verdicts, census, counted, unfinished)
        for kind in dict.fromkeys(REWRITTEN.values())
    ]
    found += [_of_backend(kind, verdicts, census, counted) for kind in ("norm", "activation")]
    return [*filter(None, found), *_of_convolutions(census, counted)]


def _of_passes(
    kind: str, verdicts: Sequence[Verdict], census: Mapping[str, int], counted: Counted, unfinished: str
) -> Shortfall | None:
    """What passes are to rewrite."""
    expected, done = census.get(kind, 0), counted.whole.get(kind, 0)
    if done >= expected:
        return None
    parts = [
        f"{kind}: the original does it {expected} times, {done} are fused in the graph that is shipped"
    ]
    tried = [verdict for verdict in verdicts if REWRITTEN.get(verdict.name) == kind]
    if not tried:
        return Shortfall(f"{parts[0]}; no pass for it was tried{f' ({unfinished})' if unfinished else ''}")
    if (unseen := expected - max(verdict.found for verdict in tried)) > 0:
        parts.append(f"{unseen} were not recognized in the graph")
    parts += _fates(tried, counted)
    if unfinished:
        parts.append(f"not all was tried ({unfinished})")
    if left := counted.left.get(kind, {}):
        parts.append(f"in the graph there are {_listed(left)}")
    return Shortfall("; ".join(parts), excused=_measured(tried, expected - done, counted))


def _fates(tried: Sequence[Verdict], counted: Counted) -> list[str]:
    """What passes rewrote, why not the rest, and what became of it."""
    found = []
    for verdict in tried:
        if verdict.found:
            rewrote = f"the pass {verdict.name} rewrote {verdict.rewritten} of {verdict.found}"
            fate = counted.instead if verdict.kept else f"dropped: {verdict.why}"
            found.append("; ".join(filter(None, (rewrote, verdict.reasons, fate))))
    return found


def _measured(tried: Sequence[Verdict], missing: int, counted: Counted) -> bool:
    """Whether a pass rewrote all that is missing, and is not shipped because of its time. One that was not
    timed failed, or answered otherwise."""
    timed = [verdict for verdict in tried if verdict.ratio is not None]
    return any(each.rewritten >= missing and (not each.kept or counted.instead) for each in timed)


def _of_backend(
    kind: str, verdicts: Sequence[Verdict], census: Mapping[str, int], counted: Counted
) -> Shortfall | None:
    """What ONNX Runtime makes whole, with the help of a pass or without."""
    expected, done = census.get(kind, 0), counted.whole.get(kind, 0)
    if done >= expected:
        return None
    said = f"{kind}: the original does it {expected} times, {done} are one node in the graph"
    left = counted.left.get(kind, {})
    if not left:
        why = "nothing is left of the others: they are constants, or nothing takes what they give"
        return Shortfall(f"{said}; {why}", excused=True)
    tried = [verdict for verdict in verdicts if _HELPED.get(verdict.name) == kind and verdict.found]
    fates = _fates(tried, counted) or [
        "the others are constants, or ONNX Runtime's fusions do not know how they are written"
    ]
    said = "; ".join([said, *fates, f"in the graph there are {_listed(left)}"])
    return Shortfall(said, excused=_measured(tried, expected - done, counted))


def _of_convolutions(census: Mapping[str, int], counted: Counted) -> list[Shortfall]:
    """Batch norms that could be in the weights before them, and activations that kernels could compute."""
    found = []
    expected = census.get("batch norm", 0)
    reasons = {_FOLDABLE: "ONNX Runtime folds none", _ALONE: "no weights before them could take them up:"}
    for kind, why in reasons.items():
        left = counted.left.get(kind, {})
        if expected and left:
            alone = sum(left.values())
            said = f"batch norm: the original does it {expected} times, {alone} are nodes of their own"
            found.append(Shortfall(f"{said}; {why} {_listed(left)}", excused=kind == _ALONE))
    if beside := counted.left.get("convolution", {}):
        said = f"convolution: of {census.get('convolution', 0)}, {sum(beside.values())} do not compute the"
        why = f"activation behind them, though there is a kernel for both: {_listed(beside)}"
        found.append(Shortfall(f"{said} {why}"))
    return found


def _listed(counts: Mapping[str, int]) -> str:
    ordered: Collection[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{what} ({number}×)" for what, number in ordered)
