"""From the start of a process to its first answer, and its peak memory, each in processes of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from infer.errors import BackendError
from infer.feeds import Feeds
from infer.measure.record import ColdStart
from infer.measure.rounds import Progress
from infer.npz import save_npz
from infer.options import PlanOptions

ROUNDS = 5

# prints when it got where, on the clock that processes of a machine share, and its peak memory in KiB
_PROGRAM = """
import sys, time
points = []
def mark(): points.append(time.monotonic())
import infer, json, numpy
path, feeds, options = sys.argv[1:]
load = infer.load
mark()
session = load(path, **json.loads(options))
mark()
with numpy.load(feeds) as arrays:
    given = dict(arrays)
session.run(given)
mark()
taken = []
while len(taken) < 200 and sum(taken) < 1.0 or len(taken) < 5:
    start = time.perf_counter()
    session.run(given)
    taken.append(time.perf_counter() - start)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(*points, sorted(taken)[len(taken) // 2], peak)
"""


def cold_starts(
    paths: Mapping[str, Path],
    feeds: Feeds,
    options: PlanOptions,
    progress: Progress = lambda _: None,
) -> list[ColdStart]:
    """Medians of `ROUNDS` processes of each artifact or `.onnx` file, by name, in turns.

    Milliseconds count from the moment before the process is created. Raises `BackendError` if one fails.
    """
    found: dict[str, list[Sequence[float]]] = {name: [] for name in paths}
    wished = asdict(options)
    del wished["graph_optimization"]  # which nobody chooses who loads
    with tempfile.TemporaryDirectory(prefix="infer-") as folder:
        given = Path(folder) / "feeds.npz"
        save_npz(given, feeds)
        for turn in range(ROUNDS):
            for name, path in paths.items():
                progress(f"cold start {turn + 1} of {ROUNDS}, {name}")
                found[name].append(_one([str(path), str(given), json.dumps(wished)], name))
    return [_medians(name, rows) for name, rows in found.items()]


def _medians(name: str, rows: Sequence[Sequence[float]]) -> ColdStart:
    imported, loaded, answered, steady, peak = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return ColdStart(name, imported, loaded, answered, steady, int(peak))


def _one(arguments: list[str], name: str) -> Sequence[float]:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BackendError(
            f"'{name}' cannot be loaded in a process of its own: {done.stderr.strip()[-500:]}"
        )
    imported, loaded, answered, steady, peak = map(float, done.stdout.split())
    return [*(1e3 * (at - start) for at in (imported, loaded, answered)), 1e3 * steady, 1024 * peak]
