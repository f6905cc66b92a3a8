"""What each module of a model gives in one call, seen by forward hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from converters.flat import FlatModule, tensors_in
from converters.points import to_numpy
from converters.pristine import pristine
from infer.errors import ConversionError
from infer.optimizer.modules import SEVERAL_CALLS, SEVERAL_TENSORS, ModuleOutput


def module_outputs(flat: FlatModule, tensors: Sequence[torch.Tensor]) -> tuple[ModuleOutput, ...]:
    """The outputs of all modules that are called, in the order they end; not of those that return what they
    were given, as dropout does. Empty for TorchScript, whose modules are not called from Python."""
    watch = _Watch()
    hooks = []
    try:
        if not isinstance(flat.module, torch.jit.ScriptModule):
            for path, part in flat.module.named_modules():
                if path:
                    hooks.append(part.register_forward_hook(watch.hook(path), with_kwargs=True))
        with torch.no_grad(), pristine(flat.module):
            flat(*[tensor.clone() for tensor in tensors])
    finally:
        for hook in hooks:
            hook.remove()
    return watch.outputs()


class _Watch:
    """Keeps what modules return, as arrays, because the next module may write into it."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._seen: dict[str, ModuleOutput] = {}
        # the newest tensor that a module returned, and the modules that returned it, innermost first
        self._newest: torch.Tensor | None = None
        self._givers: tuple[str, ...] = ()

    def outputs(self) -> tuple[ModuleOutput, ...]:
        return tuple(
            seen if self._calls[path] == 1 else ModuleOutput(path, seen.kind, None, SEVERAL_CALLS)
            for path, seen in self._seen.items()
        )

    def hook(self, path: str) -> Any:
        def ended(part: torch.nn.Module, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
            given = [tensor for _, tensor in tensors_in([args, kwargs], "")]
            returned = [tensor for _, tensor in tensors_in(result, "")]
            same = len(returned) == 1 and any(returned[0] is tensor for tensor in given)
            if same and not getattr(part, "inplace", False):
                return
            follows = isinstance(part, _BatchNorm) and any(tensor is self._newest for tensor in given)
            folds_into = self._givers if follows else ()
            array = _array(returned)
            reason = "" if array is not None else SEVERAL_TENSORS
            self._calls[path] += 1
            self._seen[path] = ModuleOutput(path, type(part).__name__, array, reason, folds_into)
            if len(returned) == 1:
                self._givers = (*self._givers, path) if returned[0] is self._newest else (path,)
                self._newest = returned[0]

        return ended


def _array(tensors: Sequence[torch.Tensor]) -> Any:
    if len(tensors) != 1:
        return None
    try:
        return to_numpy(tensors[0], "")
    except ConversionError:  # a kind that numpy lacks, and graphs do not have
        return None
