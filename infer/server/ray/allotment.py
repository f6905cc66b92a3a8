"""What Ray gives the actor that this process is: threads and a device."""

from __future__ import annotations

import ray

from infer.machine import this_machine


def allotted_threads() -> int:
    """Threads a run may use: the actor's whole `num_cpus`, one at least, and never more than the cores.

    Ray counts CPUs to place actors and holds none of them to its number; this does.
    """
    return max(1, min(int(_allotted("CPU")), this_machine().cores))


def allotted_device() -> str:
    """For an actor with `num_gpus` "cuda", whose GPU is the first one that it sees; else "cpu"."""
    return "cuda" if _allotted("GPU") else "cpu"


def _allotted(resource: str) -> float:
    return float(ray.get_runtime_context().get_assigned_resources().get(resource, 0.0))
