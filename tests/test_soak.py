"""The rule that long runs are held to."""

from __future__ import annotations

import numpy as np

from bench.soak import MOST_ABOVE_MEAN, above_mean

SECONDS = 1800


def test_memory_that_grows_is_told_from_memory_that_varies() -> None:
    """Half an hour with ±5 MB, a peak and a warm-up is calm; 2 KiB left behind at each of 30 requests a
    second is not."""
    rng = np.random.default_rng(0)
    calm = 300e6 + rng.normal(0.0, 5e6, SECONDS)
    calm[:100] -= 150e6  # before its buffers have grown
    calm[900:905] += 200e6
    assert above_mean(list(calm)) < MOST_ABOVE_MEAN
    assert above_mean(list(calm + 30 * 2048 * np.arange(SECONDS))) > MOST_ABOVE_MEAN
