"""How exact the original's own answers are.

Some models amplify rounding errors, so that no export can be nearer to the original than the original
is to itself: LayerNorm over almost equal values, refinement of boxes step by step. Asked in
float64, the original shows it, and whoever reads that an export failed can judge the tolerance.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from converters.flat import FlatModule
from converters.points import Points, to_numpy
from converters.pristine import pristine


def own_rounding(flat: FlatModule, points: Points) -> dict[str, float]:
    """For each float32 output the largest difference to the float64 answer over all points, relative to
    the largest value. Empty if the model does not run in float64."""
    found: dict[str, float] = {}
    try:
        exact = copy.deepcopy(flat).double()
        for point in points.points:
            tensors = [torch.from_numpy(array) for array in point.feeds.values()]
            with torch.no_grad(), pristine(exact.module):
                outputs = exact(*[t.double() if t.is_floating_point() else t for t in tensors])
            for name, tensor in zip(exact.output_names, outputs, strict=True):
                rounded, precise = point.outputs[name], to_numpy(tensor, name)
                if rounded.dtype == np.float32 and rounded.shape == precise.shape and rounded.size:
                    scale = float(np.max(np.abs(precise))) or 1.0
                    error = float(np.max(np.abs(rounded - precise))) / scale
                    found[name] = max(found.get(name, 0.0), error)
    except Exception:  # a model with float32 written into its code; then nothing is known
        return {}
    return {name: error for name, error in found.items() if np.isfinite(error)}
