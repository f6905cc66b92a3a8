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

REWRITTEN = {"attention": "attention", "guarded-attention": "attention"}
"""Pass → what it must find all of, or another pass of that, as the census of the original counts it."""

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
    for kind in dict.fromkeys(REWRITTEN.values()):
        tried = [verdict for verdict in verdicts if REWRITTEN.get(verdict.name) == kind]
        if not tried:
            continue
        # one that was not timed failed, or answered otherwise
        done = max((v.rewritten for v in tried if v.ratio is not None), default=0)
        expected = census.get(kind, 0)
        if done >= expected:
            continue
        said = f"{kind}: the original does it {expected} times, {done} were rewritten"
        if unseen := expected - max(verdict.found for verdict in tried):
            said += f"; {unseen} were not recognized in the graph"
        reasons = [verdict.reasons or verdict.why for verdict in tried if verdict.found]
        found.append("; ".join([said, *reasons]))
    for kind, count in whole.items():
        if count < census.get(kind, 0):
            found.append(
                f"{kind}: the original does it {census[kind]} times, {count} are one node in the graph"
            )
    return found
