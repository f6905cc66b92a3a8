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
_COMPILED = "._orig_mod."

# what names of a state dict tell of how the model was trained: part of a name → what to do
_CURES = (
    (
        "lora_",
        "These are weights of a PEFT adapter: convert the folder that holds its adapter_config.json, or"
        " merge it with merge_and_unload() and save the whole model's weights",
    ),
    (
        ".parametrizations.",
        "The model was saved with torch.nn.utils.parametrizations on it: apply the same ones in the code"
        " that builds the model, or take them off with remove_parametrizations() before saving",
    ),
    (
        "weight_g",
        "The model was saved with torch.nn.utils.weight_norm on it: apply it in the code that builds the"
        " model, or take it off with remove_weight_norm() before saving",
    ),
    (
        "weight_orig",
        "The model was saved with spectral_norm or pruning on it: apply the same in the code that builds"
        " the model, or take it off with remove_spectral_norm() or prune.remove() before saving",
    ),
)


def load_weights(module: torch.nn.Module, path: Path) -> list[str]:
    """Load the weights in `path` into `module`; notes about what was changed on the way.

    Raises `ConversionError` if names or shapes do not match, or the file would run code.
    """
    state, notes = read_state(path)
    own = module.state_dict()
    while state and not own.keys() & state.keys():
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"the prefix '{prefix}' was taken off the names in '{path.name}'")
    # a part that was compiled by itself has the prefix in the middle
    if any(_COMPILED in f".{name}" for name in state) and not any(_COMPILED in f".{n}" for n in own):
        state = {f".{name}".replace(_COMPILED, ".")[1:]: tensor for name, tensor in state.items()}
        notes.append(f"'{_COMPILED[1:]}' was taken out of the names in '{path.name}'")
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
        cure = "Check that the code builds the same model that was trained"
        for part, known in _CURES:
            if any(part in name for name in unexpected):
                cure = known
                break
        raise ConversionError(f"'{path}' does not fit the model: {'; '.join(said)}. {cure}")
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
