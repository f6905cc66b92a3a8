"""Where two graphs of one model part: the first value that differs, and who made it.

Rewrites keep the names of the values that they replace, so values are matched by name. Both graphs run as
they are written, and the values they share are compared in the order of the second graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from infer.errors import InferError
from infer.feeds import Feeds
from infer.graphwriting import save
from infer.npz import save_npz
from infer.optimizer.watching import watched
from infer.parity import Difference, Tolerance, compare_tensor
from infer.signature import Array

MODULE, SOURCE = "infer.module", "infer.source"  # written by converters/origins.py


@dataclass(frozen=True)
class Part:
    """A value that both graphs have, and how far it is apart. `module` and `source` are of the node that
    makes it: its path in the PyTorch original, and file and line; "" if they are not known."""

    value: str
    operator: str
    module: str
    source: str
    difference: Difference

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.module, self.source) if part)
        return f"{self.difference} made by {self.operator}{f' in {where}' if where else ''}"


@dataclass(frozen=True)
class Divergence:
    """What came of a comparison.

    Attributes:
        compared: how many values both graphs have.
        first: the first that differs, None if none does.
        steps: of all that differ, those where the cosine falls the most, the largest fall first.
        repro: files of the smallest part that shows the first difference, if they were asked for.
    """

    compared: int
    first: Part | None
    steps: tuple[Part, ...]
    repro: tuple[Path, ...] = ()


def compare_files(
    first: Path,
    second: Path,
    feeds: Feeds,
    tolerances: Mapping[str, Tolerance],
    repro: Path | None = None,
) -> Divergence:
    """`diverges` for two files, with a repro in the folder `repro` if they part. Raises `InferError`."""
    before, after = ir.load(first), ir.load(second)
    found = diverges(before, after, feeds, tolerances)
    if found.first is None or repro is None:
        return found
    return replace(found, repro=write_repro(before, after, found.first, feeds, repro))


def diverges(
    before: ir.Model, after: ir.Model, feeds: Feeds, tolerances: Mapping[str, Tolerance], most: int = 5
) -> Divergence:
    """Compare all values that the graphs share, at one feed. Raises `InferError`."""
    shared = _shared(before, after)
    names = [name for name, _ in shared]
    with watched(before, names) as expected, watched(after, names) as found:
        theirs, ours = expected.run(feeds), found.run(feeds)
    parts = []
    for name, node in shared:
        difference = compare_tensor(name, theirs[name], ours[name], tolerances)
        parts.append(_part(node, difference))
    differing = [part for part in parts if not part.difference.within]
    return Divergence(len(parts), differing[0] if differing else None, _falls(parts, most))


def _part(node: ir.Node, difference: Difference) -> Part:
    meta = node.metadata_props
    return Part(difference.output, node.op_type, meta.get(MODULE, ""), meta.get(SOURCE, ""), difference)


def part_of(model: ir.Model, difference: Difference) -> Part:
    """The part of a value that one of the graph's nodes makes."""
    made_by = (node for node in model.graph if difference.output in {value.name for value in node.outputs})
    return next(
        (_part(node, difference) for node in made_by),
        Part(difference.output, "no node", "", "", difference),
    )


def _shared(before: ir.Model, after: ir.Model) -> list[tuple[str, ir.Node]]:
    """Values that both make, with the node of the second graph; sequences and the like are left out."""
    theirs = {output.name: output for node in before.graph for output in node.outputs if output.name}
    found = []
    for node in after.graph:
        for output in node.outputs:
            name = output.name or ""
            if name in theirs and is_tensor(output) and is_tensor(theirs[name]):
                found.append((name, node))
    return found


def is_tensor(value: ir.Value) -> bool:
    """Whether a value can be had from a run: sequences and the like cannot."""
    return isinstance(value.type, ir.TensorType)


def _falls(parts: Sequence[Part], most: int) -> tuple[Part, ...]:
    cosine = 1.0
    falls = []
    for part in parts:
        here = part.difference.cosine
        if here is None or part.difference.within:
            continue
        falls.append((cosine - here, part))
        cosine = min(cosine, here)
    falls.sort(key=lambda fall: -fall[0])
    return tuple(part for fall, part in falls[:most] if fall > 0)


def write_repro(
    before: ir.Model, after: ir.Model, part: Part, feeds: Feeds, folder: Path
) -> tuple[Path, Path]:
    """The smallest part of `after` that shows it: from values that agree to the one that does not, as
    `repro.onnx`; in `repro.npz`, its inputs as the first graph has them, and what that makes of them.

    Raises `InferError` if the graph cannot be cut.
    """
    agreed = {name for name, _ in _shared(before, after)} - {part.value}
    with watched(before, [*agreed, part.value]) as whole:
        values = whole.run(feeds)
    return write_cut(after, part.value, agreed, values, folder)


def write_cut(
    model: ir.Model, value: str, agreed: Collection[str], values: Mapping[str, Array], folder: Path
) -> tuple[Path, Path]:
    """The nodes of `model` from values that are agreed on to `value`; `values` has what these should be.

    Raises `InferError` if the graph cannot be cut.
    """
    cut = model.clone()
    inputs = _cut(cut, value, agreed)
    for given in cut.graph.inputs:
        given.shape = ir.Shape(values[given.name or ""].shape)
    folder.mkdir(parents=True, exist_ok=True)
    graph, data = folder / "repro.onnx", folder / "repro.npz"
    save(cut, graph)
    arrays: dict[str, Array] = {name: values[name] for name in inputs}
    save_npz(data, {**arrays, f"expected_{value}": values[value]})
    return graph, data


def _cut(model: ir.Model, value: str, agreed: Collection[str]) -> list[str]:
    """Leave only what makes `value` of values that are agreed on, or of inputs; their names."""
    graph = model.graph
    made_by = {output.name: node for node in graph for output in node.outputs}
    if value not in made_by:
        raise InferError(f"the graph does not make '{value}'")
    needed: dict[ir.Node, None] = {}
    borders: dict[str, ir.Value] = {}
    waiting = [made_by[value]]
    while waiting:
        node = waiting.pop()
        needed[node] = None
        for each in node.inputs:
            maker = None if each is None else each.producer()
            if each is None or each.name is None or each.is_initializer():
                continue
            if maker is None or (each.name in agreed and maker.op_type != "Constant"):
                borders[each.name] = each
            elif maker not in needed:
                waiting.append(maker)
    target = next(output for output in made_by[value].outputs if output.name == value)
    target.shape = None
    fresh = []
    for name, border in borders.items():
        if border.is_graph_input():
            fresh.append(border)
            continue
        given = ir.Value(name=f"{name}_given", type=border.type)
        for use in list(border.uses()):
            if use.node in needed:
                use.node.replace_input_with(use.idx, given)
        fresh.append(given)
    graph.outputs[:] = [target]
    graph.inputs[:] = fresh
    for node in reversed(list(graph)):
        if node not in needed:
            graph.remove(node, safe=True)
    for given, name in zip(fresh, borders, strict=True):
        given.name = name
        if given.type is None:
            raise InferError(f"the type of '{name}' is not known, so the graph cannot be cut there")
    for initializer in list(graph.initializers.values()):
        if not initializer.uses():
            graph.initializers.pop(initializer.name or "")
    return list(borders)
