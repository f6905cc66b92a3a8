"""The fusion contract: what the original does, held against what is one node in the graph that runs.

Attention is what passes rewrite. Norms and activations the backend makes whole itself while it loads a
graph, so they are counted in what it makes of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from infer.backends.ort import save_optimized
from infer.optimizer.verdict import Verdict
from infer.plan import Plan

REWRITTEN = {"attention": "attention"}
"""Pass → what it must find all of, as the census of the original counts it."""

_WHOLE = {
    "norm": frozenset(
        {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
         "SkipSimplifiedLayerNormalization", "RMSNormalization", "InstanceNormalization",
         "GroupNormalization", "GroupNorm", "EmbedLayerNormalization"}
    ),
    "activation": frozenset(
        {"Relu", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Elu", "LeakyRelu", "HardSwish",
         "HardSigmoid", "Mish", "Softplus", "Selu", "Swish", "Clip"}
    ),
}  # fmt: skip


def whole(graph: Path, plan: Plan) -> dict[str, int]:
    """How many norms and activations are one node, or a part of one, when ONNX Runtime has optimized a
    graph as `plan` says. Raises `BackendError`."""
    with tempfile.TemporaryDirectory(prefix="infer-contract-") as folder:
        path = Path(folder) / "optimized.onnx"
        save_optimized(graph, plan, path, packed=False)
        nodes = list(ir.load(path).graph)
    found = {kind: sum(node.op_type in names for node in nodes) for kind, names in _WHOLE.items()}
    found["activation"] += sum("activation" in node.attributes for node in nodes)
    return found


def shortfalls(
    verdicts: Sequence[Verdict], census: Mapping[str, int], whole: Mapping[str, int]
) -> list[str]:
    """What the original does more often than passes rewrote or the backend made whole, a sentence each.

    Without a census, such as for a plain graph, nothing can be said.
    """
    found = []
    for verdict in verdicts:
        expected = census.get(REWRITTEN.get(verdict.name, ""), 0)
        if verdict.rewritten >= expected:
            continue
        said = f"{verdict.name}: the original does it {expected} times, {verdict.rewritten} were rewritten"
        if unseen := expected - verdict.found:
            said += f"; {unseen} were not recognized in the graph"
        if verdict.declined:
            said += f"; {verdict.reasons}"
        found.append(said)
    for kind, count in whole.items():
        if count < census.get(kind, 0):
            found.append(
                f"{kind}: the original does it {census[kind]} times, {count} are one node in the graph"
            )
    return found
