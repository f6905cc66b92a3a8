"""float-minus-int: `1.0 - mask` of an integer mask."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch


def _float_minus_int(original: Any, self: torch.Tensor, other: float) -> torch.Tensor:
    return other + -self.to(torch.get_default_dtype())


def _mixes(self: torch.Tensor, other: Any) -> bool:
    return isinstance(other, float) and not self.is_floating_point() and not self.is_complex()


FLOAT_MINUS_INT = TorchPatch("float-minus-int", ("torch:Tensor.__rsub__",), _float_minus_int, _mixes)
"""Masks are often inverted as `1.0 - mask`, and masks are often integers.

Without it, the dynamo exporter's type promotion fails on them: "Cannot find a compatible
OpOverload for aten.sub with the provided arguments".
"""
