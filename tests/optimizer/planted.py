"""A model whose classes are known, and passes and recipes to put in the place of those there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from infer.optimizer import Optimized, OptimizeOptions, optimize
from infer.optimizer.passes import PassResult
from infer.optimizer.recipes import Recipe
from infer.optimizer.rewriting import constant, put, weight
from infer.session import open_artifact
from infer.signature import Array

Plant = Callable[..., None]

WIDTH = 10


class Classifier(torch.nn.Module):
    """Rows of ten numbers to the larger half: its classes are known in closed form. Nothing of it can be
    left out: between the halves lies a product that is not the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.halves = torch.nn.Linear(WIDTH, 2, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(2 * torch.eye(WIDTH))
            rows = torch.zeros(2, WIDTH)
            rows[0, : WIDTH // 2] = 1
            rows[1, WIDTH // 2 :] = 1
            self.halves.weight.copy_(rows)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.halves(torch.relu(self.mix(x)))}


def nothing(model: ir.Model) -> PassResult:
    """Finds its pattern and cannot rewrite it."""
    return PassResult(1, 0, Counter({"the moon is full": 1}))


def detour(model: ir.Model) -> PassResult:
    """The same numbers by a longer way: sixty products with the identity."""
    node = model.graph[-1]
    value = node.inputs[0]
    assert value is not None
    eye = weight(model.graph, "eye", np.eye(WIDTH, dtype=np.float32))
    for _ in range(60):
        step = ir.node("MatMul", [value, eye])
        put(node, [step])
        value = step.outputs[0]
    node.replace_input_with(0, value)
    return PassResult(1, 1)


def shift(model: ir.Model) -> PassResult:
    """Other numbers."""
    return added(model, np.array(0.01, np.float32))


def added(model: ir.Model, numbers: Array) -> PassResult:
    """The answers, and these numbers."""
    output = model.graph.outputs[0]
    total = ir.node("Add", [output, weight(model.graph, "added", numbers)])
    model.graph.append(total)
    total.outputs[0].shape, total.outputs[0].type = output.shape, output.type
    name, output.name = output.name, "before"
    total.outputs[0].name = name
    model.graph.outputs[0] = total.outputs[0]
    return PassResult(1, 1)


def harmless(model: ir.Model) -> PassResult:
    """The same numbers: twice the weights before, half of them after."""
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    for node, factor in ((products[0], 2.0), (products[-1], 0.5)):
        matrix = constant(node.inputs[1])
        assert matrix is not None
        node.replace_input_with(1, weight(model.graph, "scaled", matrix * np.float32(factor)))
    return PassResult(1, 1)


def products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]


def rough(*spoiled: int, noise: float = 1.0) -> Recipe:
    """Rounds weights, which are exact then; to those of the products at these places noise is added."""

    def build(model: ir.Model, given: Any, way: str, keep: Any) -> PassResult:
        result = PassResult()
        for place, node in enumerate(products(model)):
            result.found += 1
            if node.name in keep:
                continue
            matrix = constant(node.inputs[1])
            assert matrix is not None
            changed = np.round(matrix * 64) / 64
            if place in spoiled:
                changed = changed + noise * np.random.default_rng(2).standard_normal(matrix.shape)
            node.replace_input_with(1, weight(model.graph, "rough", changed.astype(np.float32)))
            result.rewritten += 1
        return result

    return Recipe("rough", "rounded", ("once",), products, build)


def optimized(path: Path, output: Path, **options: Any) -> Optimized:
    given = {"gate_s": 0.2, "num_threads": 1, **options}
    return optimize(open_artifact(path), output, OptimizeOptions(**given))


def why(found: Optimized) -> dict[str, tuple[bool, str]]:
    return {verdict.name: (verdict.kept, verdict.why) for verdict in found.verdicts}
