"""Rest between turns: what a candidate leaves running must not be charged to the next one."""

from __future__ import annotations

import time

_CALM, _CALM_STEPS = 0.05, 2
_STEP_S = 0.002
_LONGEST_S = 0.25
"""Seen after a query of MiniLM on 2 cores: ONNX Runtime's threads spin for 30 to 90 ms, OpenVINO's for 15,
OpenMP's (PyTorch) for 5 to 15. A fixed pause would be too short for one or waste the time of all."""


def settle() -> None:
    """Wait until this process has come to rest, so that the next candidate finds the cores free.

    Threads of a pool look for more work for a while before they sleep. Told by the processor time that
    this process still takes.
    """
    until = time.perf_counter() + _LONGEST_S
    calm = 0
    while calm < _CALM_STEPS and time.perf_counter() < until:
        wall, worked = time.perf_counter(), time.process_time()
        time.sleep(_STEP_S)
        # one calm step may be a spinning thread that another process has pushed aside
        idle = time.process_time() - worked <= _CALM * (time.perf_counter() - wall)
        calm = calm + 1 if idle else 0
