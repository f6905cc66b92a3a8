"""TorchScript files, from torch.jit.save."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from converters.source import Source
from converters.sources import SourceRequest
from converters.sources.python import make_source
from infer.errors import ConversionError


def open_torchscript(request: SourceRequest) -> Source:
    """A `.pt` file that holds a TorchScript program; one that holds weights is refused with a cure.

    TorchScript archives hold code in TorchScript's own language, not Python; loading one
    runs no Python.
    """
    path = Path(request.source)
    if not path.is_file():
        raise ConversionError(f"there is no file '{path}'; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of TorchScript on each call
            module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # damaged archives and plain checkpoints raise RuntimeError and others
        raise ConversionError(
            f"'{path}' is not a TorchScript program. If it holds weights, name the code that builds"
            f" the model: infer convert file.py:NAME --weights {path}"
        ) from error
    return make_source(request, module, str(path), None)
