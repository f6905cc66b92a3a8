"""Ranges of activations, from feeds that nobody is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from infer.errors import InputError
from infer.measure.feeds import Feeds
from infer.optimizer.watching import watched
from infer.signature import Array

_SAMPLED = 4096
"""Values of a tensor that are kept of each run."""

_SHRINK = np.linspace(1.0, 0.3, 36)
"""Parts of the whole range that are tried."""


@dataclass(frozen=True)
class ActivationRange:
    """What a tensor's values lie in, but for a few that may be clipped; 0 is always inside."""

    low: float
    high: float

    def steps(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of 256 steps."""
        scale = max(self.high - self.low, 1e-8) / 255
        return np.float32(scale), np.uint8(np.clip(np.rint(-self.low / scale), 0, 255))


def ranges(
    model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feeds], *, method: str
) -> dict[str, ActivationRange]:
    """The range of each tensor, by name. `method` is "minmax", or "mse": the range whose 256 steps are
    closest to the values in the mean, which clips rare ones.

    Raises `InputError` for values that are not finite.
    """
    kept: dict[str, list[Array]] = {name: [] for name in tensors}
    extremes: dict[str, tuple[float, float]] = dict.fromkeys(tensors, (0.0, 0.0))
    rng = np.random.default_rng(0)
    with watched(model, tensors) as inside:
        for number, each in enumerate(feeds):
            outputs = inside.run(each)
            for name in tensors:
                values = outputs[name].ravel()
                if not np.isfinite(values).all():
                    raise InputError(
                        f"calibration input {number + 1} gives NaN or infinity at '{name}', which no range"
                        f" can hold; take it out of the data, or mend the model"
                    )
                if not values.size:
                    continue
                low, high = extremes[name]
                extremes[name] = min(low, float(values.min())), max(high, float(values.max()))
                kept[name].append(rng.choice(values, min(_SAMPLED, values.size), replace=False))
    found = {}
    for name, (low, high) in extremes.items():
        whole = ActivationRange(low, high)
        sample = np.concatenate(kept[name]) if kept[name] else np.zeros(1, np.float32)
        found[name] = whole if method == "minmax" else _closest(whole, sample)
    return found


def _closest(whole: ActivationRange, sample: Array) -> ActivationRange:
    tried = [ActivationRange(whole.low * part, whole.high * part) for part in _SHRINK]
    return min(tried, key=lambda some: _squared_error(some, sample))


def _squared_error(some: ActivationRange, sample: Array) -> float:
    scale, zero = some.steps()
    steps = np.clip(np.rint(sample / scale) + zero, 0, 255)
    return float(np.mean(((steps - zero) * scale - sample) ** 2))
