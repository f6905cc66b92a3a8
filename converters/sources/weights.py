"""Reads weights from files without ever running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from infer.errors import ConversionError

# under which training scripts keep the state dict, beside optimizer state and counters
_KEYS = ("state_dict", "model_state_dict", "model_state", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile


def load_weights(module: torch.nn.Module, path: Path) -> list[str]:
    """Load the weights in `path` into `module`; notes about what was changed on the way.

    Raises `ConversionError` if names or shapes do not match, or the file would run code.
    """
    state, notes = read_state(path)
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            notes.append(f"the prefix '{prefix}' was taken off the names in '{path.name}'")
    own = module.state_dict()
    for name, tensor in state.items():
        there = own.get(name)
        if not isinstance(there, torch.Tensor) or not isinstance(tensor, torch.Tensor):
            continue
        if there.is_floating_point() != tensor.is_floating_point():
            raise ConversionError(
                f"'{path}' holds {tensor.dtype} for '{name}', which is {there.dtype} in the model;"
                f" quantized weights must be turned back into floats first"
            )
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ConversionError(f"'{path}' does not fit the model: {detail[:500]}") from error
    if missing or unexpected:
        said = [f"it lacks {_some(missing)}"] if missing else []
        said += [f"it has unknown {_some(unexpected)}"] if unexpected else []
        raise ConversionError(
            f"'{path}' does not fit the model: {'; '.join(said)}. Check that the code builds the same"
            f" model that was trained"
        )
    return notes


def read_state(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a .safetensors file or a torch file, and notes. Raises `ConversionError`."""
    if not path.is_file():
        raise ConversionError(f"there is no weights file '{path}'; check the path")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), []
        except SafetensorError as error:
            raise ConversionError(f"'{path}' is not a safetensors file: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"'{path}' holds more than weights: reading it would run code, which infer never does"
            f" for a weights file. Save the weights alone in your own code, with"
            f" safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    except Exception as error:  # damaged zip, wrong magic number, end of file
        raise ConversionError(
            f"'{path}' is not a weights file ({type(error).__name__}: {error})"
        ) from error
    notes = []
    if isinstance(loaded, Mapping):
        for key in _KEYS:
            if isinstance(loaded.get(key), Mapping):
                notes.append(f"weights were taken from '{key}' in '{path.name}'")
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping) or not any(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise ConversionError(f"'{path}' holds no state dict, that is names mapped to tensors")
    return dict(loaded), notes


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
