"""dense-experts: a mixture of experts without sorting tokens by expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from converters.patches.replace import TorchPatch


def _dense_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Every expert answers every token, shape = (experts, tokens, size), and routing weighs the answers.

    More arithmetic than asking only the chosen ones, but gathering their weights for each token
    would take gigabytes, and a loop over what was chosen cannot be exported.
    """
    experts = self.down_proj.shape[0]
    proj = _linear(self, hidden_states[None], "gate_up_proj" if self.has_gate else "up_proj")
    proj = self._apply_gate(proj) if self.has_gate else self.act_fn(proj)
    answers = _linear(self, proj, "down_proj")
    if self.has_post_expert_norm:
        answers = self.post_expert_norm(answers)
    chosen = torch.nn.functional.one_hot(top_k_index, experts).to(top_k_weights.dtype)
    routing = (chosen * top_k_weights[..., None]).sum(dim=1)
    return (answers * routing.transpose(0, 1)[..., None]).sum(dim=0).to(hidden_states.dtype)


def _linear(self: Any, values: torch.Tensor, name: str) -> torch.Tensor:
    weights = getattr(self, name)
    result = values @ (weights if self.is_transposed else weights.transpose(1, 2))
    return result + getattr(self, f"{name}_bias")[:, None] if self.has_bias else result


def _interface(original: Any, self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    return _dense_forward


DENSE_EXPERTS = TorchPatch(
    "dense-experts", ("transformers.integrations.moe:ExpertsInterface.get_interface",), _interface
)
"""Mixtures of experts sort tokens by expert and multiply them group by group.

Without it, no exporter can convert them: grouped matrix products have no ONNX operator, and
TorchScript stops at the histogram of experts.
"""
