"""Sources that were exported before: `torch.export` programs, in memory or as .pt2 files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from converters.exporters import range_of, why
from converters.source import Source
from converters.sources import SourceRequest
from converters.sources.program_archive import check_archive, refused
from converters.sources.python import make_source
from infer.errors import ConversionError
from infer.signature import Range


def open_program(request: SourceRequest) -> Source:
    """A source around an `ExportedProgram`."""
    return _source(request, request.source, "an ExportedProgram")


def open_program_file(request: SourceRequest) -> Source:
    """A `.pt2` file. Its graph is data; whatever would run code while loading is refused."""
    path = Path(request.source)
    if not path.is_file():
        raise ConversionError(f"there is no file '{path}'; check the path")
    try:
        check_archive(path)
        # torch.export.load may fall back to pickle; this makes torch.load refuse code everywhere
        with _forced_weights_only():
            program = torch.export.load(path)
    except ConversionError:
        raise
    except pickle.UnpicklingError as error:
        raise refused(path, "pickled objects") from error
    except Exception as error:  # damaged archives raise many kinds
        raise ConversionError(
            f"'{path}' is not a program of torch.export ({why(error)}); save one with torch.export.save"
        ) from error
    return _source(request, program, str(path))


@contextmanager
def _forced_weights_only() -> Iterator[None]:
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _source(request: SourceRequest, program: torch.export.ExportedProgram, described: str) -> Source:
    if request.weights is not None:
        raise ConversionError(f"{described} brings its own weights; --weights cannot be given with it")
    module = program.module(check_guards=False)
    for part in module.modules():
        part.training = False  # its mode was fixed when it was exported; .eval() is refused
    limits = _limits(program)
    if request.example_inputs is not None:
        return replace(make_source(request, module, described, None), limits=limits)
    if program.example_inputs is None:
        raise ConversionError(f"{described} has no example inputs; give them with --input")
    args, kwargs = program.example_inputs
    return Source(
        name=request.name,
        described=described,
        module=module,
        args=tuple(args),
        kwargs=kwargs,
        limits=limits,
    )


def _limits(program: torch.export.ExportedProgram) -> tuple[dict[int, Range], ...]:
    """The sizes each input was exported for; the path that was traced holds for them only."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return tuple(
        {
            axis: allowed
            for axis, size in enumerate(value.shape)
            if (allowed := range_of(program, size)) is not None
        }
        for value in values
        if isinstance(value, torch.Tensor)
    )
