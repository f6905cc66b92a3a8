"""How replicas are placed, scaled and asked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from infer.errors import InputError


@dataclass(frozen=True)
class ReplicaOptions:
    """Each replica is a process with a session of its own, or several."""

    min_replicas: int = 1
    """Replicas there are at least. Two or more, on nodes that hold one each, survive a node."""

    max_replicas: int | None = None
    """Replicas there are at most; default: `min_replicas`, so that nothing is scaled."""

    target_ongoing_requests: float = 32.0
    """Requests that wait or run, for each replica, to which the number of replicas is scaled. Half of
    `max_ongoing_requests`: batches form of what waits, and some may come while another replica starts."""

    max_ongoing_requests: int = 64
    """The most requests that one replica has at a time; they are what its batcher makes batches of."""

    max_queued_requests: int = 256
    """The most requests that each proxy or handle keeps for replicas that are full; the next one is refused
    with status 503 and Retry-After, or `BackPressureError`. -1: no limit."""

    num_cpus: float = 1.0
    """CPUs of one replica, and threads of one run of it."""

    num_gpus: float = 0.0
    """GPUs of one replica; with any, it runs on CUDA or does not start."""

    max_models: int = 3
    """The most models that one replica has loaded, where there are several; that which was asked last goes
    first."""

    timeout_s: float | None = 30.0
    """How long a request may take; then it is dropped, with status 504 or `DeadlineError`."""

    max_body_bytes: int = 64 * 2**20
    """The largest body of an HTTP request; a larger one gets status 413."""

    health_check_period_s: float = 10.0
    """How often each loaded model is asked a golden point; a replica that answers wrongly is replaced."""

    drain_s: float = 20.0
    """How long a replica that is stopped may go on with its requests."""

    surge_percent: int = 0
    """Replicas that may be started beside the old ones while code or options change, in percent of all.
    With 0, the old ones stop first, one at a time, and a lone one is missed."""

    def __post_init__(self) -> None:
        least = {"min_replicas": 1, "max_ongoing_requests": 1, "max_models": 1, "max_queued_requests": -1}
        for name, low in least.items():
            if type(value := getattr(self, name)) is not int or value < low:
                raise InputError(f"{name} must be an int of {low} or more, but is {value!r:.60}")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise InputError(
                f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}"
            )


def options_of(config: dict[str, Any]) -> ReplicaOptions:
    """The options that a configuration file names. Raises `InputError` for others."""
    known = [field.name for field in fields(ReplicaOptions)]
    if unknown := [name for name in config if name not in known]:
        raise InputError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}")
    return ReplicaOptions(**config)
