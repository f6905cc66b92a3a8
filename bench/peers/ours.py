"""infer itself, in a worker like its peers, so that nothing is charged to them that it is spared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import infer
from bench.peers.model import Feeds, Given, Loaded, versions
from infer.machine import this_machine
from infer.plan import Plan
from infer.signature import Array

SENTENCES = "sentences"
"""The feed of a comparison that begins with sentences: strings, shape = (batch,)."""


def load(given: Given) -> Loaded:
    """The artifact in a session."""
    session = infer.load(given.path, num_threads=limit(given))

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        if SENTENCES in feeds:
            sentences = feeds[SENTENCES].tolist()
            return lambda: session(sentences)
        return lambda: session.run(feeds)

    def answers(found: Any) -> dict[str, Array]:
        return dict(found) if isinstance(found, dict) else {"vector": np.stack(found)}

    return Loaded(_described(session.plan), prepare, answers)


def limit(given: Given) -> int | None:
    """The threads that are asked for; None where they are all there are: of these infer takes as many as it
    found to be fastest."""
    return given.threads if given.threads < this_machine().cores else None


def _described(plan: Plan) -> str:
    dtype = f" in {plan.compute_dtype}" if plan.compute_dtype else ""
    here = f"{plan.variant} on {versions(plan.backend)}{dtype}, threads {plan.num_threads}"
    larger = plan.larger
    return f"{here}, from {larger.rows_from} rows on {_described(larger)}" if larger else here
