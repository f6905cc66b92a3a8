"""Candidates whose latencies are drawn, not measured: what a comparison says is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infer.errors import BackendError
from infer.feeds import Feeds, sizes_of
from infer.measure.queries import Query
from infer.measure.scenarios import waited
from infer.signature import Array, Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
)
FEEDS: Feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


class SimulatedQuery:
    """Latencies around `typical_ms`, with a long tail, and a machine that drifts by the hour."""

    def __init__(self, typical_ms: float, seed: int) -> None:
        self._typical_ms, self._rng = typical_ms, np.random.default_rng(seed)

    def turn(self, count: int) -> Array:
        latencies: Array = self._typical_ms * self._rng.lognormal(0.0, 0.05, count)
        return latencies

    def serve(self, due_s: Array) -> Array:
        service_s = self.turn(len(due_s)) / 1e3
        return 1e3 * waited(np.diff(due_s, prepend=0.0), service_s)


class Simulated:
    """Answers x + `error`, in `base_ms` and `row_ms` more for each row; more than `most` rows fail."""

    def __init__(
        self,
        name: str,
        base_ms: float = 1.0,
        row_ms: float = 0.0,
        *,
        error: float = 0.0,
        most: int = 10**9,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.described = "simulated"
        self.signature = SIGNATURE
        self._base_ms, self._row_ms, self._error, self._most = base_ms, row_ms, error, most
        self._seed = seed

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if len(feeds["x"]) > self._most:
            raise BackendError(f"at most {self._most} rows")
        return {"y": feeds["x"] + np.float32(self._error)}

    def query(self, feeds: Feeds, repeat: int = 1) -> Query:
        rows = sizes_of(SIGNATURE, feeds)["batch"]
        return SimulatedQuery(repeat * (self._base_ms + rows * self._row_ms), self._seed)
