"""The rule that long runs are held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from bench.serving.servers import leaking
from bench.soak import MOST_ABOVE_MEAN, above_mean
from tests.serving import serving, tensor
from tests.tiny import make_artifact

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


def test_the_planted_leak_leaks(tmp_path: Path) -> None:
    """A server with it answers as any other, and 32 requests leave 32 MiB behind."""
    make_artifact(tmp_path / "net.infer")
    body = {"inputs": [tensor("x", np.zeros((1, 10), np.float32), "FP32")]}
    with serving(tmp_path, "net.infer", infer=(leaking.__file__, str(2**20))) as served:
        process = psutil.Process(served.process.pid)
        before = process.memory_info().rss
        for _ in range(32):
            assert served.post("/v2/models/net/infer", json=body).status_code == 200
        assert process.memory_info().rss - before > 24 * 2**20
