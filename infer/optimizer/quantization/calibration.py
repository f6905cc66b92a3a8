"""Ranges of activations, from feeds that nobody is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from infer.errors import InputError
from infer.feeds import Feeds
from infer.optimizer.watching import watched
from infer.signature import Array

_SAMPLED, _LEAST_SAMPLED = 65536, 512
"""Values of a tensor that are kept of all runs, and of each at least."""

_SHRINK = np.linspace(1.0, 0.3, 36)
"""Parts of the whole range that are tried."""

_PERCENTILE = 99.99
_BINS, _LEVELS = 2048, 128
"""Of a histogram of magnitudes, and what is left of it after quantizing."""

_NEARLY_EMPTY = 1e-7


@dataclass(frozen=True)
class ActivationRange:
    """What a tensor's values lie in, but for a few that may be clipped; 0 is always inside. Those that are
    `signed`, and have values below 0, get steps to both sides alike, with 0 at 0."""

    low: float
    high: float
    signed: bool = False

    def steps(self) -> tuple[np.float32, np.uint8 | np.int8]:
        """Scale and zero point of 256 steps, or of 127 to each side."""
        if self.signed and self.low < 0:
            return np.float32(max(-self.low, self.high, 1e-8) / 127), np.int8(0)
        scale = max(self.high - self.low, 1e-8) / 255
        return np.float32(scale), np.uint8(np.clip(np.rint(-self.low / scale), 0, 255))


@dataclass(frozen=True)
class Observed:
    """What calibration saw of a tensor.

    Attributes:
        low, high: the extremes, 0 among them.
        sample: some of its values.
        means: of each channel, the second axis of more than two and the last of two; empty for others.
        feature_means: of each place along the last axis, of two or more; empty for others.
    """

    low: float
    high: float
    sample: Array
    means: Array
    feature_means: Array = field(default_factory=lambda: np.zeros(0))
    _ranges: dict[str, ActivationRange] = field(default_factory=dict, compare=False, repr=False)

    def range(self, method: str) -> ActivationRange:
        """The range by one of `METHODS`, found once: a search for nodes asks for it again and again."""
        if method not in self._ranges:
            self._ranges[method] = METHODS[method](self)
        return self._ranges[method]


def observe(model: ir.Model, tensors: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, Observed]:
    """What each tensor holds when the model is run on all feeds, by name.

    Raises `InputError` for values that are not finite.
    """
    kept: dict[str, list[Array]] = {name: [] for name in tensors}
    means: dict[str, list[Array]] = {name: [] for name in tensors}
    feature_means: dict[str, list[Array]] = {name: [] for name in tensors}
    extremes: dict[str, tuple[float, float]] = dict.fromkeys(tensors, (0.0, 0.0))
    rng = np.random.default_rng(0)
    sampled = max(_LEAST_SAMPLED, _SAMPLED // max(1, len(feeds)))
    with watched(model, tensors) as inside:
        for number, each in enumerate(feeds):
            outputs = inside.run(each)
            for name in tensors:
                values = outputs[name]
                check_finite(values, name, number)
                if not values.size:
                    continue
                low, high = extremes[name]
                extremes[name] = min(low, float(values.min())), max(high, float(values.max()))
                means[name].append(_means(values, 1 if values.ndim > 2 else -1))
                feature_means[name].append(_means(values, -1))
                flat = values.ravel()
                kept[name].append(
                    flat[rng.integers(0, flat.size, sampled)] if flat.size > sampled else flat
                )
    return {
        name: Observed(
            low,
            high,
            np.concatenate(kept[name]) if kept[name] else np.zeros(1, np.float32),
            _mean_of(means[name]),
            _mean_of(feature_means[name]),
        )
        for name, (low, high) in extremes.items()
    }


def check_finite(values: Array, name: str, number: int) -> None:
    """Refuse what the tensor `name` holds for the calibration feed at this place, counted from 0. Raises
    `InputError`."""
    if not np.isfinite(values).all():
        raise InputError(
            f"calibration input {number + 1} gives NaN or infinity at '{name}', which no range can hold;"
            f" take it out of the data, or mend the model"
        )


def _mean_of(vectors: Sequence[Array]) -> Array:
    """Empty if they differ in length: then what was taken for channels is something else."""
    if len({len(vector) for vector in vectors}) != 1:
        return np.zeros(0)
    return np.asarray(np.mean(vectors, axis=0))


def _means(values: Array, axis: int) -> Array:
    """Of each place along an axis."""
    if values.ndim < 2:
        return np.zeros(0)
    return np.asarray(
        np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).mean(axis=0, dtype=np.float64)
    )


def _extremes(seen: Observed) -> ActivationRange:
    return ActivationRange(seen.low, seen.high)


def _closest(seen: Observed) -> ActivationRange:
    """The range whose 256 steps are closest to the values in the mean square, which clips rare ones."""
    tried = [ActivationRange(seen.low * part, seen.high * part) for part in _SHRINK]
    return min(tried, key=lambda some: _squared_error(some, seen.sample))


def _squared_error(some: ActivationRange, sample: Array) -> float:
    scale, zero = some.steps()
    steps = np.clip(np.rint(sample / scale) + zero, 0, 255)
    return float(np.mean(((steps - zero) * scale - sample) ** 2))


def _percentile(seen: Observed) -> ActivationRange:
    """What holds all values but one in ten thousand at each end."""
    low, high = np.percentile(seen.sample, [100 - _PERCENTILE, _PERCENTILE])
    return ActivationRange(min(0.0, float(low)), max(0.0, float(high)))


def _entropy(seen: Observed) -> ActivationRange:
    """The range whose 128 levels of magnitude tell least less than all do.

    Source: Migacz 2017, "8-bit inference with TensorRT": the threshold with the smallest divergence of the
    quantized histogram from the clipped one.
    """
    sizes = np.abs(seen.sample)
    counts, edges = np.histogram(sizes, _BINS, range=(0.0, float(sizes.max()) or 1.0))
    best, threshold = np.inf, float(edges[-1])
    for kept in range(_LEVELS, _BINS + 1, _LEVELS // 8):
        clipped = counts[:kept].astype(np.float64)
        levels = np.arange(kept) * _LEVELS // kept
        sums = np.bincount(levels, weights=clipped, minlength=_LEVELS)
        filled = np.bincount(levels, weights=clipped > 0, minlength=_LEVELS)
        spread = np.where(clipped > 0, (sums / np.maximum(filled, 1))[levels], 0.0)
        clipped[-1] += counts[kept:].sum()
        divergence = _divergence(clipped, spread)
        if divergence < best:
            best, threshold = divergence, float(edges[kept])
    return ActivationRange(max(seen.low, -threshold), min(seen.high, threshold))


def _divergence(true: Array, other: Array) -> float:
    """Kullback and Leibler's, of two histograms; where only the second is empty, it counts as nearly so."""
    there = true > 0
    p, q = true[there] / max(true.sum(), 1.0), other[there] / max(other.sum(), 1.0)
    return float(np.sum(p * np.log(p / np.maximum(q, _NEARLY_EMPTY))))


METHODS: dict[str, Callable[[Observed], ActivationRange]] = {
    "extremes": _extremes,
    "squared error": _closest,
    "percentile": _percentile,
    "entropy": _entropy,
}
"""How a range is chosen."""
