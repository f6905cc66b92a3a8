"""The exporters of torch, in the order they are tried, behind one form: flat module in, onnx-ir model out.

Every one of them is wrong or helpless on some models; `converters.convert` takes the first whose
graph passes parity at all points.
"""

from __future__ import annotations

import contextlib
import io
import logging
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

Axes = Mapping[str, Mapping[int, str]]
Translations = Mapping[Callable[..., Any], Callable[..., Any]]
Export = Callable[[FlatModule, Sequence[torch.Tensor], Axes, int, Translations], ir.Model]

INPUT, OUTPUT = "infer_input_{}", "infer_output_{}"
"""Names given during export, which no model uses; `converters.finish` puts the real ones."""


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
) -> ir.Model:
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
    return program.model


def _torchscript(
    flat: FlatModule, example: Sequence[torch.Tensor], axes: Axes, opset: int, translations: Translations
) -> ir.Model:
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
        return model


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
            with contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
    finally:
        logging.disable(level)


def why(error: BaseException) -> str:
    """The root cause of an exporter's failure in one line, without its advice and its colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
