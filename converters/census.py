"""What a model is made of: how often it attends, normalizes, activates and convolves in one call.

Counted while the original answers, so that it does not matter which modules it is written with. It is kept
in the manifest, and what an optimizer finds in the graph is held against it: a fusion that finds eleven
attentions of twelve has missed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_KINDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "attention": (F.scaled_dot_product_attention, F.multi_head_attention_forward),
    "norm": (
        F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.instance_norm,
        torch.instance_norm, F.rms_norm,
    ),
    "batch norm": (F.batch_norm, torch.batch_norm),
    "activation": (
        F.relu, torch.relu, torch.Tensor.relu, F.relu6, F.hardtanh, F.gelu, F.silu, F.elu, F.leaky_relu,
        F.hardswish, F.hardsigmoid, F.mish, F.softplus, F.selu,
    ),
    "convolution": (
        F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    ),
    "linear": (F.linear, torch.addmm),
    "embedding": (F.embedding,),
    "recurrent": (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
}  # fmt: skip
_KIND_OF = {id(function): kind for kind, functions in _KINDS.items() for function in functions}

_SOFTMAX = frozenset(map(id, (F.softmax, torch.softmax, torch.Tensor.softmax)))
_PRODUCT = frozenset(
    map(id, (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
             torch.einsum))
)  # fmt: skip
_BY_HAND = {
    "norm": ("RMSNorm", "T5LayerNorm", "DebertaLayerNorm"),
    "activation": ("NewGELUActivation", "FastGELUActivation", "QuickGELUActivation"),
}
"""What is written with plain arithmetic, by the ends of class names."""


class _Counting(TorchFunctionMode):
    """Counts functions by kind. Attention that is not one call is a softmax whose result, perhaps through
    dropout and the like, is multiplied with something."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._shares: dict[int, torch.Tensor] = {}  # kept alive, so that no id is used again

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))  # what it calls is part of it, and is not seen
        kind = _KIND_OF.get(id(func))
        if kind is not None:
            self.counts[kind] += 1
        elif id(func) in _PRODUCT:
            if any(id(tensor) in self._shares for tensor in _tensors(args)):
                self.counts["attention"] += 1
        elif isinstance(result, torch.Tensor) and (
            id(func) in _SOFTMAX or (args and id(args[0]) in self._shares)
        ):
            self._shares[id(result)] = result
        return result


def _tensors(args: Iterable[Any]) -> Iterable[torch.Tensor]:
    for each in args:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _tensors(each)


def census(module: torch.nn.Module, example: Iterable[torch.Tensor]) -> dict[str, int]:
    """How often `module` does what, by kind, in one call with `example`; empty if it cannot be told, as of
    TorchScript, or of what does not run while it is watched."""
    counting = _Counting()
    hooks = []
    for kind, names in _BY_HAND.items():

        def seen(_module: torch.nn.Module, _args: Any, _result: Any, kind: str = kind) -> None:
            counting.counts[kind] += 1

        for part in module.modules():
            if type(part).__name__.endswith(names) and not isinstance(part, torch.nn.RMSNorm):
                hooks.append(part.register_forward_hook(seen))
    try:
        with torch.no_grad(), counting:
            module(*example)
    except Exception:  # it ran before, so it is the watching that it cannot bear
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return {kind: counting.counts[kind] for kind in _KINDS if counting.counts[kind]}
