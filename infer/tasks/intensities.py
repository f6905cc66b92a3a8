"""Normalization of scans as data: intensities go through steps and come out as the model knows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks.interpolation import resized
from infer.tasks.scans import MAX_VOXELS, Scan


@dataclass(frozen=True)
class IntensityStep:
    """One step. Which fields an `op` reads is said beside it.

    window      center, width: from center - width/2 to center + width/2 becomes 0 to 1, cut off there
    percentile  low, high: what lies between these percentiles of the scan becomes 0 to 1, not cut off
    z_score     mean, std; without them, those of the scan itself
    clip        low, high
    """

    op: str
    center: float | None = None
    width: float | None = None
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None

    def check(self) -> None:
        """Raises `ArtifactError` for a step this release lacks, or that lacks a field."""
        ends = (self.low, self.high)
        needs: dict[str, tuple[float | None, ...]] = {
            "window": (self.center, self.width),
            "percentile": ends,
            "clip": ends,
            "z_score": (),
        }
        if self.op not in needs:
            raise ArtifactError(f"unknown intensity step '{self.op}'; use one of {', '.join(needs)}")
        bad = None in needs[self.op]
        if self.op == "window":
            bad = bad or self.width is None or not self.width > 0
        elif self.op == "z_score":
            bad = (self.mean is None) != (self.std is None) or (self.std is not None and not self.std > 0)
        else:
            bad = bad or self.low is None or self.high is None or not self.low < self.high
            if self.op == "percentile" and not bad:
                bad = (self.low or 0) < 0 or (self.high or 0) > 100
        if bad:
            raise ArtifactError(f"the intensity step {self} lacks a number, or has one out of range")


@dataclass(frozen=True)
class ScanSpec:
    """How scans become feeds: first resampled to `spacing_mm` if it is given, linearly; then the steps."""

    steps: tuple[IntensityStep, ...] = ()
    spacing_mm: tuple[float, ...] = ()


def prepare(scan: Scan, spec: ScanSpec) -> Array:
    """Intensities, float32, shape = (1, *spatial). Raises `InputError`."""
    array = scan.array[None]
    if spec.spacing_mm:
        if not scan.spacing_mm:
            raise InputError(
                "the model wants scans resampled to a spacing, but this one does not say its own; hand"
                " over a Scan with spacing_mm"
            )
        pairs = zip(scan.array.shape, scan.spacing_mm, spec.spacing_mm, strict=True)
        lengths = [n * has / want for n, has, want in pairs]
        if math.prod(max(1.0, n) for n in lengths) > MAX_VOXELS:
            raise InputError(
                f"resampling a scan of {list(scan.array.shape)} voxels from {list(scan.spacing_mm)} mm to"
                f" {list(spec.spacing_mm)} mm would give more than {MAX_VOXELS}; is its spacing in mm?"
            )
        size = tuple(max(1, round(n)) for n in lengths)
        array = resized(array, size)
    for step in spec.steps:
        array = _apply(array, step)
    return np.ascontiguousarray(array, np.float32)


def synthetic_intensities(array: Array, spec: ScanSpec) -> Array:
    """Numbers from 0 to 1 spread over the intensities that the first step looks at."""
    step = spec.steps[0] if spec.steps else IntensityStep("z_score")
    if step.op == "window" and step.center is not None and step.width is not None:
        low, width = step.center - step.width, 2 * step.width
    elif step.op == "clip" and step.low is not None and step.high is not None:
        low, width = step.low, step.high - step.low
    else:
        # other steps scale by the scan itself, or by the mean and spread of those of training
        width = math.sqrt(12) * (step.std or 1.0)
        low = (step.mean or 0.0) - width / 2
    return np.asarray(low + width * array, np.float32)


def check_scan_spec(spec: ScanSpec, axes: int) -> None:
    """Raises `ArtifactError` if the spec cannot be followed for scans of `axes` axes."""
    for step in spec.steps:
        step.check()
    if spec.spacing_mm and (len(spec.spacing_mm) != axes or min(spec.spacing_mm) <= 0):
        raise ArtifactError(f"scan.spacing_mm must be {axes} positive numbers, not {list(spec.spacing_mm)}")


def _apply(array: Array, step: IntensityStep) -> Array:
    step.check()
    values = array.astype(np.float64)
    if step.op == "window":
        assert step.center is not None
        assert step.width is not None
        scaled = np.clip((values - (step.center - step.width / 2)) / step.width, 0.0, 1.0)
    elif step.op == "percentile":
        low, high = _percentiles(values, (step.low, step.high))
        scaled = (values - low) / (high - low if high > low else 1.0)  # an even scan stays even
    elif step.op == "clip":
        scaled = np.clip(values, step.low, step.high)
    else:
        mean = values.mean() if step.mean is None else step.mean
        std = (values.std() or 1.0) if step.std is None else step.std
        scaled = (values - mean) / std
    return scaled.astype(np.float32)


def _percentiles(values: Array, at: Sequence[float | None]) -> tuple[float, float]:
    low, high = np.percentile(values, [0.0 if p is None else p for p in at])
    return float(low), float(high)
