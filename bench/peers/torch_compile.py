"""PyTorch compiled by Inductor, with the settings its CPU pages give for inference."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.model import Feeds, Given, Loaded


def load(given: Given) -> Loaded:
    """Frozen weights and `max-autotune`, which picks among products of matrices by trying; compiled for
    each size, so that none is slower than it must be.

    What was compiled is kept by Inductor's own cache.
    """
    made = Path(given.made)
    made.mkdir(parents=True, exist_ok=True)
    # read when torch is imported
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(made)
    import torch

    from bench.peers.torch_eager import tensor, tensors
    from converters.sources import SourceRequest, open_source

    torch.set_num_threads(given.threads)
    torch._dynamo.config.recompile_limit = 64  # a size each, which is what was asked for
    module = open_source(SourceRequest(given.path, "model")).module.eval()
    compiled = torch.compile(module, mode="max-autotune", dynamic=False)

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        wanted = {name: tensor(array) for name, array in feeds.items()}

        def call() -> Any:
            with torch.no_grad():  # weights are frozen without gradients only
                return compiled(**wanted)

        call()
        return call

    prepare(given.example())
    broken = len(torch._dynamo.utils.counters["graph_break"])
    said = f", {broken} graph breaks" if broken else ""
    return Loaded(
        f"torch {torch.__version__}, Inductor, max-autotune, frozen, threads {given.threads}{said}",
        prepare,
        lambda found: {name: value.numpy() for name, value in tensors(found).items()},
    )
