"""Where two graphs of one model part: the first value that differs, and who made it.

Rewrites keep the names of the values that they replace, so values are matched by name; outputs, where their
names differ, by their place. Both graphs run as they are written, and what they share is compared in the
order of the second graph. What is not compared is counted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from infer.errors import InferError
from infer.feeds import Feeds
from infer.graphwriting import save
from infer.npz import save_npz
from infer.optimizer.canonical import NO_TENSORS
from infer.optimizer.watching import watched
from infer.parity import Difference, Tolerance, compare_tensor
from infer.signature import Array

MODULE, SOURCE = "infer.module", "infer.source"  # written by converters/origins.py


@dataclass(frozen=True)
class Part:
    """A value that both graphs have, and how far it is apart. `module` and `source` are of the node that
    makes it: its path in the PyTorch original, and file and line; "" if they are not known. `is_output`:
    whether the graph gives it."""

    value: str
    operator: str
    module: str
    source: str
    difference: Difference
    is_output: bool = False

    def __str__(self) -> str:
        what = "output" if self.is_output else "value"
        where = ", ".join(part for part in (self.module, self.source) if part)
        return (
            f"{what} '{self.value}': {self.difference.said} made by {self.operator}"
            f"{f' in {where}' if where else ''}"
        )


@dataclass(frozen=True)
class Divergence:
    """What came of a comparison.

    Attributes:
        compared: how many values both graphs have, outputs included.
        outputs: how many outputs were compared.
        notes: what was not compared, and what was matched otherwise than by name.
        first: the first that differs, None if none does.
        steps: of all that differ, those where the cosine falls the most, the largest fall first.
        repro: files of the smallest part that shows the first difference, if they were asked for.
    """

    compared: int
    outputs: int
    notes: tuple[str, ...]
    first: Part | None
    steps: tuple[Part, ...]
    repro: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """A value of the first graph, that of the second it is held against, and the node that makes the
    latter; None for what no node makes."""

    theirs: str
    ours: str
    node: ir.Node | None


def compare_files(
    first: Path,
    second: Path,
    feeds: Feeds,
    tolerances: Mapping[str, Tolerance],
    repro: Path | None = None,
) -> Divergence:
    """`diverges` for two files, with a repro in the folder `repro` if they part. Raises `InferError`."""
    before, after = _typed(ir.load(first)), _typed(ir.load(second))
    found = diverges(before, after, feeds, tolerances)
    if found.first is None or repro is None:
        return found
    if found.first.value not in {pair.ours for pair in _shared(before, after)}:
        note = f"no repro: '{found.first.value}' has another name in the first graph, or no node makes it"
        return replace(found, notes=(*found.notes, note))
    return replace(found, repro=write_repro(before, after, found.first, feeds, repro))


def _typed(model: ir.Model) -> ir.Model:
    """The model with the types of its values as far as they follow from its inputs': only values whose type
    is known can be asked for."""
    nodes = list(model.graph)
    unknown = any(value.type is None for node in nodes for value in node.outputs if value.name)
    # inference notes tensors where sequences are
    if unknown and not any(word in node.op_type for node in nodes for word in NO_TENSORS):
        ShapeInferencePass()(model)
    return model


def diverges(
    before: ir.Model, after: ir.Model, feeds: Feeds, tolerances: Mapping[str, Tolerance], most: int = 5
) -> Divergence:
    """Compare all values that the graphs share, and their outputs, at one feed. Raises `InferError`."""
    pairs = _shared(before, after)
    outputs, notes = _outputs(before, after)
    inside = {pair.ours for pair in pairs}
    pairs += [pair for pair in outputs if pair.ours not in inside]
    with watched(before, [*dict.fromkeys(pair.theirs for pair in pairs)]) as expected:
        theirs = expected.run(feeds)
    with watched(after, [pair.ours for pair in pairs]) as found:
        ours = found.run(feeds)
    given = {value.name for value in after.graph.outputs}
    parts = []
    for pair in pairs:
        difference = compare_tensor(pair.ours, theirs[pair.theirs], ours[pair.ours], tolerances)
        parts.append(_part(pair.node, difference, is_output=pair.ours in given))
    differing = [part for part in parts if not part.difference.within]
    return Divergence(
        len(parts),
        len(outputs),
        (*notes, *_left_out(before, after)),
        differing[0] if differing else None,
        _falls(parts, most),
    )


def _outputs(before: ir.Model, after: ir.Model) -> tuple[list[_Pair], list[str]]:
    """The graphs' outputs, and what is to be said about them."""
    made_by = {value.name or "": value.producer() for value in after.graph.outputs}
    theirs = [value.name or "" for value in before.graph.outputs]
    pairs, notes = pair_outputs(theirs, list(made_by))
    return [_Pair(a, b, made_by[b]) for a, b in pairs], notes


def pair_outputs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Outputs that belong together, by name, or, where names differ, by place among the others; and what is
    to be said about it."""
    pairs = [(name, name) for name in theirs if name in ours]
    first = [name for name in theirs if name not in ours]
    second = [name for name in ours if name not in theirs]
    notes = []
    if by_place := list(zip(first, second, strict=False)):
        named = ", ".join(f"'{a}' with '{b}'" for a, b in by_place)
        notes.append(f"outputs that differ in name are compared by place: {named}")
    for which, left in (("first", first[len(second) :]), ("second", second[len(first) :])):
        if left:
            notes.append(f"not compared: outputs that only the {which} has: {', '.join(left)}")
    return [*pairs, *by_place], notes


def _left_out(before: ir.Model, after: ir.Model) -> list[str]:
    """What of the graphs is not compared."""
    shared = {pair.ours for pair in _shared(before, after)}
    found = []
    for which, model in (("first", before), ("second", after)):
        named = [value for node in model.graph for value in node.outputs if value.name]
        tensors = [value for value in named if is_tensor(value)]
        alone = sum(value.name not in shared and not value.is_graph_output() for value in tensors)
        untyped = sum(value.type is None for value in named)
        within = sum(
            bool(value.name)
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.graph is not model.graph
            for value in node.outputs
        )
        counted = {
            f"value{'s' * (alone != 1)} that only it has": alone,
            f"value{'s' * (within != 1)} within its branches and loops": within,
            "of its sequences and the like": len(named) - len(tensors) - untyped,
            "of unknown type": untyped,
        }
        if said := [f"{count} {what}" for what, count in counted.items() if count]:
            found.append(f"not compared in the {which}: {', '.join(said)}")
    return found


def _part(node: ir.Node | None, difference: Difference, *, is_output: bool) -> Part:
    meta = {} if node is None else node.metadata_props
    made_by = "no node" if node is None else node.op_type
    where = meta.get(MODULE, ""), meta.get(SOURCE, "")
    return Part(difference.output, made_by, *where, difference, is_output)


def part_of(model: ir.Model, difference: Difference) -> Part:
    """The part of a value that one of the graph's nodes makes."""
    made_by = (node for node in model.graph if difference.output in {value.name for value in node.outputs})
    given = difference.output in {value.name for value in model.graph.outputs}
    return _part(next(made_by, None), difference, is_output=given)


def _shared(before: ir.Model, after: ir.Model) -> list[_Pair]:
    """Values that both make, with the node of the second graph; sequences and the like are left out."""
    theirs = {output.name: output for node in before.graph for output in node.outputs if output.name}
    found = []
    for node in after.graph:
        for output in node.outputs:
            name = output.name or ""
            if name in theirs and is_tensor(output) and is_tensor(theirs[name]):
                found.append(_Pair(name, name, node))
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
    agreed = {pair.ours for pair in _shared(before, after)} - {part.value}
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


def _nodes_of(node: ir.Node) -> Iterator[ir.Node]:
    """It, and those of the graphs inside it: of an If's branches, say."""
    yield node
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _taken(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """The values of the graph that it takes, also within."""
    values = [value for each in _nodes_of(node) for value in each.inputs]
    return [value for value in values if value is not None and value.graph is graph]


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
        for each in _taken(node, graph):
            maker = each.producer()
            if each.name is None or each.is_initializer():
                continue
            if maker is None or (each.name in agreed and maker.op_type != "Constant"):
                borders[each.name] = each
            elif maker not in needed:
                waiting.append(maker)
    target = next(output for output in made_by[value].outputs if output.name == value)
    target.shape = None
    fresh = []
    inside = {each for node in needed for each in _nodes_of(node)}
    for name, border in borders.items():
        if border.is_graph_input():
            fresh.append(border)
            continue
        given = ir.Value(name=f"{name}_given", type=border.type)
        for use in list(border.uses()):
            if use.node in inside:
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
