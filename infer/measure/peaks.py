"""What this machine can do at best: float32 products of matrices, and reading memory.

Measured once, and kept if the machine had time: what is measured beside other work is a peak of nothing.

Both are measured with numpy in a process of its own, because the libraries beneath it read their number
of threads when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from infer import schema
from infer.drafts import file_draft
from infer.errors import BackendError, InferError
from infer.machine import this_machine
from infer.measure.record import Peaks

_METHOD = 1
"""Of the cached figures: another method, another file."""

_PROGRAM = """
import concurrent.futures, sys, time
import numpy as np

threads, seconds, bytes_read = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

steady = 1.0

def fastest(call):
    global steady
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    taken.sort()
    steady = min(steady, taken[0] / taken[len(taken) // 2])
    return taken[0]

gflops = 0.0
for n in (512, 1024, 1536):
    a, b, c = (np.ones((n, n), np.float32) for _ in range(3))
    gflops = max(gflops, 2e-9 * n**3 / fastest(lambda: np.matmul(a, b, out=c)))

# every byte is read, none is written: a matrix times a vector, and sums of parts
matrix = np.ones((bytes_read // 4 // 4096, 4096), np.float32)
vector, given = np.ones(4096, np.float32), np.empty(len(matrix), np.float32)
best = fastest(lambda: np.matmul(matrix, vector, out=given))
with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    parts = np.array_split(matrix.reshape(-1).view(np.int64), threads)
    best = min(best, fastest(lambda: list(pool.map(np.bitwise_or.reduce, parts))))
print(gflops, 1e-9 * matrix.nbytes / best, steady)
"""

_SECONDS = 0.4
_STEADY = 0.8
"""Of an idle machine: the shortest time is at least this much of the typical one."""

_TIMES_THE_CACHE = 8


def machine_peaks(threads: int) -> Peaks:
    """Peaks of this machine's CPU with so many threads, from the cache if they were measured before.

    Measuring takes about 2 s; the machine should be idle. Raises `BackendError` if they cannot be measured.
    """
    path = _cached(threads)
    with suppress(OSError, schema.SchemaError):
        return schema.decode(Peaks, schema.parse(path.read_bytes()), "the cached peaks")
    peaks, steady = _measure(threads)
    if steady < _STEADY:
        return peaks
    with suppress(OSError, InferError):  # a cache that cannot be written only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_draft(path) as draft:
            draft.write_text(json.dumps(schema.encode(peaks)) + "\n", encoding="utf-8")
    return peaks


def _cached(threads: int) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infer"
    key = f"{this_machine().fingerprint}|{threads}|{_METHOD}"
    return folder / f"peaks-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _measure(threads: int) -> tuple[Peaks, float]:
    """The peaks, and how steady they were: the shortest time over the median, where that is least."""
    cache_bytes = last_cache_bytes()
    read = max(2**28, _TIMES_THE_CACHE * cache_bytes)
    limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(limits, str(threads))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(threads), str(_SECONDS), str(read)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        gflops, gigabytes_per_s, steady = map(float, done.stdout.split())
    except ValueError as error:
        raise BackendError(
            f"the machine's peaks could not be measured: {done.stderr.strip()[-300:] or 'no answer'}"
        ) from error
    return Peaks(threads, gflops, gigabytes_per_s, cache_bytes), steady


def last_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the cache that is nearest to memory; 0 if the system does not tell.

    Source: kernel docs, ABI/stable/sysfs-devices-system-cpu.
    """
    sizes: dict[int, int] = {}
    for folder in root.glob("index*"):
        with suppress(OSError, ValueError):
            text = (folder / "size").read_text(encoding="ascii").strip()
            unit = {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]] if text[-1:] in "KMG" else 1
            sizes[int((folder / "level").read_text(encoding="ascii"))] = int(text.rstrip("KMG")) * unit
    return sizes[max(sizes)] if sizes else 0
