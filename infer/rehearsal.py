"""What runs in the process in which a graph is tried: `python -m infer.rehearsal BACKEND…`.

It reads a request a line from stdin and answers each with a line: nothing but {} if the graph was loaded
and answered. `infer.untrusted` starts it, watches its memory and its time, and ends it.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from infer.backends import load_backend
from infer.errors import InferError
from infer.feeds import made_up_feeds, made_up_values
from infer.guard import Guard
from infer.npz import load_npz
from infer.plan import Plan
from infer.schema import decode, parse
from infer.signature import Signature, TensorSpec

_MOST_VALUES = 2**22
"""Feeds are made up only if they have no more: 16 MiB of float32."""

_MOST_WORDS = 2000

_NICE = 10


@dataclass(frozen=True)
class Request:
    """A graph to load as `plan` says, and to ask its golden points, or what can be made up.

    Attributes:
        golden: the files of the golden points' feeds.
        cpu_s: the processor time that it may take.
    """

    graph: str
    plan: Plan
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: tuple[str, ...]
    cpu_s: int


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no answer
    _bind_hands()
    for name in sys.argv[1:]:
        load_backend(name)  # before the memory that a graph takes is counted
    for told in chain([{}], map(_answer, sys.stdin)):  # the first says that it is ready
        answers.write(json.dumps(told) + "\n")
        answers.flush()


def _bind_hands() -> None:
    """No file is written, no core is dumped, and others go first: for the processor, and to live where
    memory ends."""
    import resource

    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(_NICE)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _answer(line: str) -> dict[str, str]:
    try:
        _rehearse(decode(Request, parse(line), "request"))
    except Exception as error:  # whatever it is, it is told
        return {"error": type(error).__name__, "message": str(error)[:_MOST_WORDS]}
    return {}


def _rehearse(request: Request) -> None:
    _bound_time(request.cpu_s)
    signature = Signature(request.inputs, request.outputs)
    names = tuple(spec.name for spec in request.outputs)
    # threads that are shared are those of another process; spinning would only take time from others
    plan = replace(request.plan, shared_threads=False, spinning=False)
    executable = load_backend(plan.backend).prepare(Path(request.graph), plan, signature)
    guard = Guard(signature)
    for file in request.golden:
        executable.run(guard.admit(load_npz(Path(file))), names)
    if not request.golden and made_up_values(signature) <= _MOST_VALUES:
        with suppress(InferError):  # values without a meaning may be out of range
            executable.run(guard.admit(made_up_feeds(signature)), names)
    executable.close()


def _bound_time(cpu_s: int) -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most < 0 else min(soft, most), most))


if __name__ == "__main__":
    main()
