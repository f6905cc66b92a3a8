"""Where a graph parts from its PyTorch original: the first module whose output differs.

The converter notes on every node the module that asked for it. What a module gives is then a value that
its nodes make and that others take, or that is an output of the graph. If several are, the module agrees if
one of them is what it gave in PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from infer.errors import ConversionError
from infer.feeds import Feeds
from infer.optimizer.divergence import MODULE, Part, is_tensor, part_of, write_cut
from infer.optimizer.watching import watched
from infer.parity import Difference, Tolerance, compare_tensor
from infer.signature import Array

SEVERAL_TENSORS = "do not return exactly one tensor"
SEVERAL_CALLS = "are called several times"
NO_VALUE = "have no value of their own in the graph"


@dataclass(frozen=True)
class ModuleOutput:
    """What a module gave in PyTorch, when the model was called once.

    Attributes:
        path: as `named_modules()` has it.
        kind: its class.
        output: the one tensor it returned; None if `reason` says why there is none.
        folds_into: modules that exporters make one with this one: the convolution before a batch norm.
    """

    path: str
    kind: str
    output: Array | None
    reason: str = ""
    folds_into: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModulePart:
    """A module, the value of the graph that should be its output, and how far that is apart; `module` is
    "" for the model itself."""

    module: str
    kind: str
    part: Part

    @property
    def value(self) -> str:
        return self.part.value

    def __str__(self) -> str:
        return f"module '{self.module}' ({self.kind}): {self.part}" if self.module else str(self.part)


@dataclass(frozen=True)
class ModuleDivergence:
    """What came of a comparison.

    Attributes:
        compared: how many modules have a value in the graph.
        unmatched: how many have none that can be told, by reason.
        outputs: how many outputs of the model were compared.
        first: the first module that differs, innermost first; None if none does.
        repro: files of the smallest part that shows it, if they were asked for.
    """

    compared: int
    unmatched: Mapping[str, int]
    outputs: int
    first: ModulePart | None
    repro: tuple[Path, ...] = ()


def compare_modules(
    modules: Sequence[ModuleOutput],
    outputs: Mapping[str, Array],
    reference: Path,
    graph: Path,
    feeds: Feeds,
    tolerances: Mapping[str, Tolerance],
    repro: Path | None = None,
) -> ModuleDivergence:
    """Hold `graph` against what modules gave in PyTorch, in the order they ended, and then the model.

    `reference` is the graph as it was converted, which says who made which value; rewritten ones keep the
    names of the values. With a repro in the folder `repro` if they part.

    Raises `ConversionError` if the graph is of another model, or another `InferError`.
    """
    model = ir.load(graph)
    candidates = _candidates(modules, ir.load(reference))
    names = [name for names in candidates.values() for name in names]
    with watched(model, [*dict.fromkeys((*names, *outputs))]) as inside:
        found = inside.run(feeds)
    unmatched: Counter[str] = Counter()
    agreed: dict[str, Array] = {}
    differing: list[tuple[ModuleOutput, Difference]] = []
    compared = 0
    for module in modules:
        known = candidates[module.path]
        differences = _differences(module, known, found, tolerances)
        equal = [difference.output for difference in differences if difference.within]
        if not differences or (not equal and any(name not in found for name in known)):
            unmatched[module.reason or NO_VALUE] += 1
            continue
        compared += 1
        if module.output is not None:
            agreed.update(dict.fromkeys(equal, module.output))
        if not equal:
            differing.append((module, differences[-1]))
    for name, array in outputs.items():
        difference = compare_tensor(name, array, found[name], tolerances)
        if not difference.within:
            differing.append((ModuleOutput("", "", array), difference))
    if not differing:
        return ModuleDivergence(compared, dict(unmatched), len(outputs), None)
    module, difference = differing[0]
    files: tuple[Path, ...] = ()
    if repro is not None and module.output is not None:
        known_values = {**feeds, **agreed, difference.output: module.output}
        files = write_cut(model, difference.output, agreed, known_values, repro)
    first = ModulePart(module.path, module.kind, part_of(model, difference))
    return ModuleDivergence(compared, dict(unmatched), len(outputs), first, files)


def _candidates(modules: Sequence[ModuleOutput], reference: ir.Model) -> dict[str, list[str]]:
    """For each module the values of the graph that may be its output."""
    made = leaving(reference)
    if made and modules and not any(module.path in made for module in modules):
        raise ConversionError(
            f"the graph is of another model: it names the modules {_some(made)}, and the source has"
            f" {_some(module.path for module in modules)}; name the source it was converted from"
        )
    found = {module.path: made.get(module.path, []) for module in modules}
    for module in modules:
        if module.folds_into and not found[module.path]:
            found[module.path] = found.get(module.folds_into[0], [])
            found.update((path, []) for path in module.folds_into)
    return found


def leaving(model: ir.Model) -> dict[str, list[str]]:
    """Module → the values made by its nodes, or those of modules in it, that others take."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        path = node.metadata_props.get(MODULE, "")
        for value in filter(is_tensor, node.outputs):
            users = [use.node.metadata_props.get(MODULE, "") for use in value.uses()]
            for module in _enclosing(path):
                if value.is_graph_output() or any(module not in _enclosing(user) for user in users):
                    found.setdefault(module, []).append(value.name or "")
    return found


def _enclosing(path: str) -> list[str]:
    """The module of this path and those around it, without the model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _differences(
    module: ModuleOutput,
    names: Sequence[str],
    found: Mapping[str, Array],
    tolerances: Mapping[str, Tolerance],
) -> list[Difference]:
    """How far the values that look like the module's output are from it."""
    expected = module.output
    if expected is None:
        return []
    alike = [n for n in names if n in found and _kind(found[n]) == _kind(expected)]
    return [compare_tensor(name, expected, found[name], tolerances) for name in alike]


def _kind(array: Array) -> tuple[str, tuple[int, ...]]:
    return array.dtype.name, array.shape


def _some(paths: Iterable[str]) -> str:
    named = sorted(paths)
    return ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
