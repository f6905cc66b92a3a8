"""How much of a difference is the original's own rounding.

Some models amplify rounding errors, so that no export can be nearer to the original than the original
is to itself: LayerNorm over almost equal values, refinement of boxes step by step. Asked in
float64, the original shows how exact its float32 answers are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from converters.flat import FlatModule
from converters.points import Points, to_numpy
from converters.pristine import pristine
from infer.parity import Tolerance

# A graph that is as exact as the original differs from it by up to both their errors.
_FACTOR = 2.0
# Beyond this a difference is no rounding: wrong graphs were seen from here on.
_LARGEST = 1e-3


def widened_tolerances(
    flat: FlatModule, points: Points, tolerances: Mapping[str, Tolerance]
) -> tuple[dict[str, Tolerance], tuple[str, ...]]:
    """`tolerances` with an entry for each output that the original itself cannot answer more exactly,
    and a note for each."""
    widened, notes = dict(tolerances), []
    for output, rounding in own_rounding(flat, points).items():
        allowed = tolerances["float32"].scaled if "float32" in tolerances else 0.0
        if allowed < _FACTOR * rounding <= _LARGEST:
            widened[output] = Tolerance(atol=1e-7, rtol=0.0, scaled=_FACTOR * rounding)
            notes.append(
                f"output '{output}' was held to {_FACTOR * rounding:.1e} of its largest value, not"
                f" {allowed:.0e}: the original's own float32 answer is {rounding:.1e} off its float64 one"
            )
    return widened, tuple(notes)


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
                rounded, precise = point.outputs[name], to_numpy(tensor)
                if rounded.dtype == np.float32 and rounded.shape == precise.shape and rounded.size:
                    scale = float(np.max(np.abs(precise))) or 1.0
                    error = float(np.max(np.abs(rounded - precise))) / scale
                    found[name] = max(found.get(name, 0.0), error)
    except Exception:  # a model with float32 written into its code; then nothing is known
        return {}
    return {name: error for name, error in found.items() if np.isfinite(error)}
