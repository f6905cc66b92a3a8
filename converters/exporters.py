"""The exporters of torch, in the order they are tried, behind one form: flat module in, onnx-ir model out.

Every one of them is wrong or helpless on some models; `converters.convert` takes the first whose
graph passes parity at all points.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from converters.flat import FlatModule
from converters.scripted import scripted_form
from infer.errors import ConversionError
from infer.signature import Range

Axes = Mapping[str, Mapping[int, str]]
Translations = Mapping[Callable[..., Any], Callable[..., Any]]
Export = Callable[[FlatModule, Sequence[torch.Tensor], Axes, int, Translations], "Traced"]

INPUT, OUTPUT = "infer_input_{}", "infer_output_{}"
"""Names given during export, which no model uses; `converters.finish` puts the real ones."""


# torch writes "no limit" as the largest size there is, or near it
_UNLIMITED = 2**31


@dataclass(frozen=True)
class Traced:
    """A graph as an exporter gave it, and the sizes for which the path it took through the model holds,
    as far as the exporter knows.

    Attributes:
        program: what the graph was written from, if that can be run in torch.
    """

    model: ir.Model
    limits: Mapping[str, Range]
    program: torch.export.ExportedProgram | None = None


@dataclass(frozen=True)
class Exporter:
    """One way to get a graph, at one opset."""

    name: str
    opset: int
    export: Export

    def __str__(self) -> str:
        return f"{self.name} at opset {self.opset}"


def _dynamo(
    flat: FlatModule, example: Sequence[torch.Tensor], axes: Axes, opset: int, translations: Translations
) -> Traced:
    # AUTO lets torch tie sizes together or freeze them; what it froze shows in the graph's
    # inputs, where it is checked, instead of failing the export for a stricter wish
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(axes[name], auto) for name in flat.input_names)
    program = torch.onnx.export(
        flat,
        tuple(example),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=(shapes,),
        input_names=[INPUT.format(i) for i in range(len(example))],
        output_names=[OUTPUT.format(i) for i in range(len(flat.output_names))],
        custom_translation_table=dict(translations),
        verbose=False,
    )
    if program is None:
        raise ConversionError("the exporter gave no program")
    exported = program.exported_program
    return Traced(program.model, {} if exported is None else _limits(exported, flat, axes), exported)


def _limits(program: torch.export.ExportedProgram, flat: FlatModule, axes: Axes) -> dict[str, Range]:
    """What the branches that the trace took demand of each dim."""
    user_inputs = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in user_inputs]
    limits: dict[str, Range] = {}
    for name, value in zip(flat.input_names, values, strict=True):
        for axis, dim in axes[name].items():
            if (allowed := range_of(program, value.shape[axis])) is not None:
                limits[dim] = allowed & limits.get(dim, Range())
    return limits


def range_of(program: torch.export.ExportedProgram, size: int | torch.SymInt) -> Range | None:
    """The sizes a program holds for, if they are limited. Frozen sizes show in the graph, and compound ones
    at the points."""
    if isinstance(size, int) or size.node.expr not in program.range_constraints:
        return None
    allowed = program.range_constraints[size.node.expr]
    least, most = int(allowed.lower), int(min(allowed.upper, _UNLIMITED))
    # torch takes sizes to be 2 at least whatever the model says; 1 has a point of its own
    least = least if least > 2 else 1
    return Range(least, most if most < _UNLIMITED else None) if least > 1 or most < _UNLIMITED else None


def _torchscript(
    flat: FlatModule, example: Sequence[torch.Tensor], axes: Axes, opset: int, translations: Translations
) -> Traced:
    names = [INPUT.format(i) for i in range(len(example))]
    with tempfile.TemporaryDirectory(prefix="infer-export-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            scripted_form(flat) if isinstance(flat.module, torch.jit.ScriptModule) else flat,
            tuple(example),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=[OUTPUT.format(i) for i in range(len(flat.output_names))],
            dynamic_axes={
                given: {axis: f"{dim}__{name}" for axis, dim in axes[name].items()}
                for given, name in zip(names, flat.input_names, strict=True)
                if axes[name]
            },
            do_constant_folding=True,
        )
        model = ir.load(path)
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                # the folder is about to go
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
        return Traced(model, {})


EXPORTERS: tuple[Exporter, ...] = (
    Exporter("dynamo", 23, _dynamo),  # keeps Attention, RMSNormalization, RotaryEmbedding whole
    Exporter("dynamo", 20, _dynamo),
    Exporter("torchscript", 18, _torchscript),  # last: silently wrong more often than the others
)
"""Tried in this order."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' banners, warnings and logs off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()), _native_output_dropped():
                warnings.simplefilter("ignore")
                yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _native_output_dropped() -> Iterator[None]:
    """TorchScript's exporter prints warnings, and the whole graph it failed on, past Python's streams."""
    kept: dict[int, int] = {}
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            with contextlib.suppress(OSError):  # it is closed
                kept[number] = os.dup(number)
                os.dup2(nowhere, number)
        os.close(nowhere)
        yield
    finally:
        for number, stream in kept.items():
            os.dup2(stream, number)
            os.close(stream)


def why(error: BaseException) -> str:
    """The root cause of an exporter's failure in one line, without its advice and its colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


_CALL = re.compile(r'The following call raised this error:\s+File "([^"]+)", line (\d+), in \w+\s+([^\n]+)')
_BRANCH = re.compile(r"\b(if|elif|while|assert|and|or|not|bool|int|float|item|tolist)\b")


def branch_on_values(error: BaseException | None) -> str | None:
    """The line where the model makes a Python value of a tensor's, if that is why torch.export failed.

    A size that is only known when the graph runs, such as the number of values a mask selects, fails
    in the same way, but is no branch: those lines lie in calls, not in conditions.
    """
    while error is not None:
        call = _CALL.search(str(error)) if "data-dependent" in str(error) else None
        if call and _BRANCH.search(call[3]):
            return f"line {call[2]} of {Path(call[1]).name}: {call[3][:100]}"
        error = error.__cause__ or error.__context__
    return None
