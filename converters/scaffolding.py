"""What training put around and into a model: wrappers, adapters, weights computed from others.

Each is taken off before converting, which changes no answer beyond rounding; the caller's module stays
as it is.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch.nn.utils import parametrize

# the old-style norms are hooks, whose classes have no public names
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from infer.errors import ConversionError

_OLD_NORMS = ((WeightNorm, remove_weight_norm), (SpectralNorm, remove_spectral_norm))
_OLD = (WeightNorm, SpectralNorm)


def unwrap(module: Any) -> tuple[Any, list[str]]:
    """The model inside of torch.compile and DataParallel wrappers, with PEFT adapters merged, and notes.

    Raises `ConversionError` if an adapter cannot be merged.
    """
    notes: list[str] = []
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
            notes.append("the torch.compile wrapper was taken off")
        elif isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            module = module.module
            notes.append("the data-parallel wrapper was taken off")
        else:
            break
    # whoever has a model with adapters has imported the library that makes them
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(module, torch.nn.Module):
        module, merged = _merged(module, peft)
        notes += merged
    return module, notes


def has_computed_weights(module: Any) -> bool:
    """Whether weights of `module` are computed from others each time: by a parametrization, or a norm."""
    return any(
        parametrize.is_parametrized(part)
        or any(isinstance(h, _OLD) for h in part._forward_pre_hooks.values())
        for part in module.modules()
    )


def has_compiled_parts(module: Any) -> bool:
    """Whether calling `module` would compile a part of it with torch.compile."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl for part in module.modules())


def copied(module: Any) -> Any:
    """A deep copy of `module`, also where a norm has left its last result, which is no leaf of autograd.

    Raises `ConversionError`.
    """
    results = [t for part in module.modules() for t in vars(part).values() if isinstance(t, torch.Tensor)]
    try:
        return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in results})
    except Exception as error:  # whatever parts of its own the model refuses to copy
        raise ConversionError(
            f"a copy cannot be made of the model ({' '.join(str(error).split())[:200]}); call model.float()"
            f" and take norms and parametrizations off before converting"
        ) from error


def fold(module: Any) -> str:
    """Give `module`, which must be in eval mode, the weights that it computes as its own; a note of it."""
    count = 0
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            # each parametrized module has a class of its own, which copies share, and removing edits it
            kind = type(part)
            part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for name in list(part.parametrizations):
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
                count += 1
        for norm, remove in _OLD_NORMS:
            for hook in [h for h in part._forward_pre_hooks.values() if isinstance(h, norm)]:
                remove(part, hook.name)
                count += 1
    return f"{count} weights that the model computed from others (a norm, a parametrization) were folded"


def _merged(module: Any, peft: Any) -> tuple[Any, list[str]]:
    """A copy of `module` with its adapters in its weights; `module` itself if it has none."""
    layer = peft.tuners.tuners_utils.BaseTunerLayer
    if not any(isinstance(part, (peft.PeftModel, layer)) for part in module.modules()):
        return module, []
    module = copy.deepcopy(module)
    names = [name for name, part in module.named_modules() if isinstance(part, peft.PeftModel)]
    for name in reversed(names):  # inner ones first
        module = _replaced(module, name, merge_adapter(module.get_submodule(name)))
    while found := [name for name, part in module.named_modules() if isinstance(part, layer)]:
        part = module.get_submodule(found[-1])
        part.merge()
        module = _replaced(module, found[-1], part.get_base_layer())
    return module, ["PEFT adapters were merged into the weights"]


def merge_adapter(model: Any) -> Any:
    """The base model of a `PeftModel` with its adapter merged. Raises `ConversionError`."""
    config = model.active_peft_config
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        raise ConversionError(
            f"the PEFT adapter is of kind {kind}, which changes what the model is fed and not its weights,"
            f" so it cannot be merged; convert a module of yours that computes these inputs in forward"
        )
    try:
        return model.merge_and_unload()
    except Exception as error:  # each kind of adapter raises its own
        raise ConversionError(
            f"the PEFT adapter of kind {kind} cannot be merged ({error}); merge it in your own code with"
            f" merge_and_unload() and convert what it returns"
        ) from error


def _replaced(module: Any, name: str, part: Any) -> Any:
    if not name:
        return part
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)
    return module
