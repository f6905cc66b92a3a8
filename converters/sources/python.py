"""Sources written in Python: a module object, or `file.py:name` and `package.module:name`.

Naming such a source is asking to run its code; no other kind of source runs any.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from converters.flat import parameter_names
from converters.scaffolding import unwrap
from converters.source import Source
from converters.sources import SourceRequest, as_tensors
from converters.sources.weights import load_weights
from infer.errors import ConversionError


def open_module(request: SourceRequest) -> Source:
    """A source around a module object."""
    module = request.source
    described = f"{type(module).__module__}.{type(module).__qualname__}"
    return make_source(request, module, described, None)


def open_target(request: SourceRequest) -> Source:
    """`file.py:name` or `package.module:name`: a module, a class, or a factory.

    A class or factory is called without arguments; it may return `(module, example_inputs)`.
    """
    target = str(request.source)
    where, _, name = target.rpartition(":")
    found: Any = _import(where, target)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise ConversionError(
                f"'{where}' has no '{part}'; it has: {', '.join(sorted(names)) or 'nothing to call'}"
            )
        found = getattr(found, part)
    example: Any = None
    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise ConversionError(
                f"'{target}' is a {type(found).__name__}; it must be a torch.nn.Module, a class of"
                f" one, or a function that returns one"
            )
        found = _call(found, target)
    if isinstance(found, tuple) and len(found) == 2:
        found, example = found
    if not isinstance(found, torch.nn.Module):
        raise ConversionError(
            f"'{target}' returned a {type(found).__name__}; it must return a torch.nn.Module, or a"
            f" module and its example inputs"
        )
    return make_source(request, found, target, example)


def make_source(request: SourceRequest, module: Any, described: str, example: Any) -> Source:
    """A source from a module, with the caller's weights and example inputs before its own."""
    notes: list[str] = []
    module, stripped = unwrap(module)
    notes += stripped
    if request.weights is not None:
        notes += load_weights(module, request.weights)
    given = as_tensors(example) if request.example_inputs is None else request.example_inputs
    if given is None:
        names = parameter_names(module) or ["x"]
        raise ConversionError(
            f"{described} needs example inputs; its forward takes {', '.join(names)}: give"
            f" --input {names[0]}=2x3x224x224:float32 with its own shape (in Python:"
            f" example_inputs={{'{names[0]}': tensor}}), or return (module, example_inputs)"
        )
    if isinstance(given, torch.Tensor):
        given = (given,)
    if not isinstance(given, (Mapping, list, tuple)):
        raise ConversionError(
            f"the example inputs of {described} are a {type(given).__name__}; give a tensor, a list of the"
            f" arguments of forward, or a dict of them by name"
        )
    args, kwargs = ((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})
    return Source(
        name=request.name,
        described=described,
        module=module,
        args=args,
        kwargs=kwargs,
        exporters=("torchscript",) if isinstance(module, torch.jit.ScriptModule) else (),
        notes=tuple(notes),
    )


def _import(where: str, target: str) -> ModuleType:
    try:
        if where.endswith(".py"):
            return _import_file(Path(where))
        # the working folder, as `python -m` would have it
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except ConversionError:
        raise
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"cannot import '{where}' for '{target}': {error}; run the command where it can be"
            f" imported, or install what it needs"
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code ran
        raise ConversionError(
            f"importing '{where}' raised {type(error).__name__}: {error} ({_where(error)})"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConversionError(f"there is no file '{path}'; check the path")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # its siblings must be importable, as when it is run
    spec = importlib.util.spec_from_file_location(f"infer_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConversionError(f"'{path}' cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look it up
    spec.loader.exec_module(module)
    return module


def _call(factory: Any, target: str) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # built in, and silent about what it takes
        parameters = {}.values()
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        raise ConversionError(
            f"'{target}' needs arguments ({', '.join(required)}), and infer calls it with none; name"
            f" a function that returns the finished model instead"
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:  # the user's own code ran
        raise ConversionError(
            f"'{target}' raised {type(error).__name__}: {error} ({_where(error)})"
        ) from error


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"at {frames[-1].filename}:{frames[-1].lineno}" if frames else "at import"
