"""Products with weights in eight or four bits, in blocks of 32.

    before   MatMul(x, W)     after   MatMulNBits(x, codes, scales, zeros)

Why it is faster: a product of one row reads each weight once, and a quarter or an eighth of the bytes is
read sooner. With many rows float32 is faster: this is for generation, and for towers of recommenders.

Numbers: the kernel rounds blocks of 32 inputs to eight bits, each by its own largest, so that an outlier
coarsens 32 numbers and an answer does not depend on its neighbours in a batch.

Source: ONNX Runtime, `com.microsoft.MatMulNBits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from infer.errors import InputError
from infer.feeds import Feeds
from infer.optimizer.passes import PassResult
from infer.optimizer.quantization.blocks import SIZE, Blocks, compensated, factor_of, packed, rounded
from infer.optimizer.quantization.dynamic import as_product, candidates
from infer.optimizer.rewriting import CONTRIB, constant, constant_or_turned, put, take_place, tidy, weight
from infer.optimizer.watching import watched
from infer.signature import Array

_INT8_INPUTS = 4
"""Accuracy level: with float32 inputs, eight bits take ten times as long on AVX2."""

_MOST_MOMENTS = 2**26
"""Second moments that are held at a time, in numbers."""

_MOST_ROWS = 4096
"""A taller matrix is rounded weight by weight: what goes together would take gigabytes to tell."""


def quantize_in_blocks(model: ir.Model, blocks: Mapping[str, Blocks], bits: int) -> PassResult:
    """Quantize the products whose nodes have blocks by name; those with more than `bits` are noted."""
    result = PassResult()
    for node in candidates(model):
        result.found += 1
        found = blocks.get(node.name or "")
        if found is None:
            result.decline("kept in float for accuracy")
            continue
        if found.bits > bits:
            result.decline(f"{found.bits} bits, for accuracy")
        if node.op_type == "Gemm":
            node = as_product(node)
        _quantize(model.graph, node, found)
        result.rewritten += 1
    model.opset_imports[CONTRIB] = 1
    tidy(model)
    return result


def rounded_blocks(nodes: Sequence[ir.Node], bits: int) -> dict[str, Blocks]:
    """Of each of these products, by its name."""
    return {node.name or "": rounded(_matrix(node), bits) for node in nodes}


def compensated_blocks(
    model: ir.Model, nodes: Sequence[ir.Node], bits: int, feeds: Sequence[Feeds]
) -> dict[str, Blocks]:
    """The same, with the inputs that feeds give to these products taken into account."""
    alone = [n for n in nodes if len(_matrix(n)) > _MOST_ROWS or constant(n.inputs[0]) is not None]
    found = rounded_blocks(alone, bits)
    users: dict[str, list[ir.Node]] = {}
    for node in nodes:
        if node.name not in found:
            assert node.inputs[0] is not None
            users.setdefault(node.inputs[0].name or "", []).append(node)
    for tensors in _parts({name: len(_matrix(some[0])) for name, some in users.items()}):
        for name, moments in second_moments(model, tensors, feeds).items():
            factor = factor_of(moments)
            for node in users[name]:
                found[node.name or ""] = compensated(_matrix(node), bits, factor)
    return found


def second_moments(model: ir.Model, tensors: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, Array]:
    """XᵀX of each tensor over all feeds, of which the last axis has the channels.

    Raises `InputError` for values that are not finite.
    """
    rows: dict[str, list[Array]] = {name: [] for name in tensors}
    moments: dict[str, Array] = {}

    def add(name: str) -> None:
        x = np.concatenate(rows.pop(name))
        moments[name] = x.T @ x + moments.get(name, np.float32(0))
        if not np.isfinite(moments[name]).all():
            raise InputError(
                f"calibration inputs give NaN or infinity at '{name}', which nothing can be fitted to; take"
                f" them out of the data, or mend the model"
            )
        rows[name] = []

    with watched(model, tensors) as inside:
        for each in feeds:
            outputs = inside.run(each)
            for name in tensors:
                values = outputs[name]
                rows[name].append(values.reshape(-1, values.shape[-1]))
                if sum(map(len, rows[name])) > values.shape[-1]:  # one large product is faster than many
                    add(name)
    for name in tensors:
        if rows[name]:
            add(name)
    return moments


def _parts(widths: Mapping[str, int]) -> Iterator[list[str]]:
    """Tensors whose second moments are held together."""
    part: list[str] = []
    held = 0
    for name, width in widths.items():
        if part and held + width**2 > _MOST_MOMENTS:
            yield part
            part, held = [], 0
        part.append(name)
        held += width**2
    if part:
        yield part


def _matrix(node: ir.Node) -> Array:
    """Of a product, with shape (inputs, outputs)."""
    matrix = constant_or_turned(node.inputs[1])
    assert matrix is not None
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return matrix.T if transposed else matrix


def _quantize(graph: ir.Graph, node: ir.Node, blocks: Blocks) -> None:
    columns = len(blocks.codes)
    product = ir.node(
        "MatMulNBits",
        [
            node.inputs[0],
            weight(graph, f"{node.name}_int{blocks.bits}", packed(blocks.codes, blocks.bits)),
            weight(graph, f"{node.name}_scale", blocks.scale),
            weight(graph, f"{node.name}_zero", packed(blocks.zero, blocks.bits)),
        ],
        {
            "K": blocks.rows,
            "N": columns,
            "bits": blocks.bits,
            "block_size": SIZE,
            "accuracy_level": _INT8_INPUTS,
        },
        domain=CONTRIB,
        name=f"{node.name}_blocks",
    )
    put(node, [product])
    take_place(node.outputs[0], product.outputs[0])
