"""infer itself, in a worker like its peers, so that nothing is charged to them that it is spared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import infer
from bench.peers.model import Feeds, Given, Loaded, versions
from infer.signature import Array

SENTENCES = "sentences"
"""The feed of a comparison that begins with sentences: strings, shape = (batch,)."""


def load(given: Given) -> Loaded:
    """The artifact in a session."""
    session = infer.load(given.path, num_threads=given.threads)
    plan = session.plan

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        if SENTENCES in feeds:
            sentences = feeds[SENTENCES].tolist()
            return lambda: session(sentences)
        return lambda: session.run(feeds)

    def answers(found: Any) -> dict[str, Array]:
        return dict(found) if isinstance(found, dict) else {"vector": np.stack(found)}

    described = f"{plan.variant} on {versions(plan.backend)}, threads {plan.num_threads}"
    return Loaded(described, prepare, answers)
