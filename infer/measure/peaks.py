"""What this machine reaches at best: float32 matrix products, and bytes read from memory.

Measured once, with numpy, in a process whose BLAS has as many threads as are asked for, and kept in the
user's cache folder. A peak that was measured while the machine was busy is too low; to measure it again,
remove the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from infer import schema
from infer.drafts import file_draft
from infer.errors import BackendError, InferError
from infer.machine import this_machine
from infer.measure.record import Peaks

_METHOD = 1
"""Counts the ways this was measured: what another one found is not taken."""

_THREAD_SETTINGS = (
    "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

# an array so many times the last cache cannot stay in it; read in one second on any machine of today
_TIMES_THE_CACHE, _LEAST_ARRAY_BYTES, _MOST_ARRAY_BYTES = 8, 2**27, 2**30

# prints GFLOP/s and GB/s, each the best of some ways and many repeats: a busy machine only makes them worse
_PROGRAM = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
threads, array_bytes = map(int, sys.argv[1:])
clock = time.perf_counter

def fastest(call, seconds):
    call()
    end, best = clock() + seconds, float("inf")
    while True:
        start = clock()
        call()
        stop = clock()
        best = min(best, stop - start)
        if stop > end:
            return best

flops = 0.0
for n in (256, 512, 768, 1024, 1536, 2048):
    if 2 * n ** 3 / (flops or 1e9) > 0.5:
        break  # on a slow machine the largest take too long
    a, b = np.ones((2, n, n), np.float32)
    out = np.empty((n, n), np.float32)
    flops = max(flops, 2 * n ** 3 / fastest(lambda: np.matmul(a, b, out=out), 0.2))
    assert (out == n).all()

columns = 4096
matrix = np.ones((array_bytes // 4 // columns // threads * threads, columns), np.float32)
vector = np.ones(columns, np.float32)
parts = np.split(matrix.reshape(-1), threads)
with ThreadPoolExecutor(threads) as pool:
    ways = [
        lambda: matrix @ vector,
        lambda: list(pool.map(np.max, parts)),
        lambda: list(pool.map(np.sum, parts)),
    ]
    seconds = min(fastest(way, 0.25) for way in ways)
print(flops / 1e9, matrix.nbytes / seconds / 1e9)
"""


def machine_peaks(threads: int) -> Peaks:
    """What `threads` threads reach here. About two seconds the first time.

    Raises `BackendError` if it cannot be measured.
    """
    path = _cache_folder() / f"peaks-{_key(threads)}.json"
    found = _read(path)
    if found is None or found.threads != threads:
        found = _measure(threads)
        # without a folder that can be written to, it is measured again the next time
        with contextlib.suppress(InferError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_draft(path) as draft:
                draft.write_text(json.dumps(schema.encode(found)) + "\n", encoding="utf-8")
    return found


def last_cache_bytes(caches: Path = _CACHES) -> int:
    """The size of the cache farthest from a core, 0 if the system does not say.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    found = [(0, 0)]
    for folder in caches.glob("index*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = (folder / "size").read_text().strip()
            size = int(text) if text.isdigit() else int(text[:-1]) * _UNITS[text[-1:]]
            if (folder / "type").read_text().strip() != "Instruction":
                found.append((int((folder / "level").read_text()), size))
    return max(found)[1]


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "infer"  # noqa: PTH111 -- Path's own raises without a home


def _key(threads: int) -> str:
    text = f"{this_machine().fingerprint}|{threads}|{_METHOD}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Peaks | None:
    """What was kept, if it is whole."""
    try:
        found = schema.decode(Peaks, schema.parse(path.read_bytes()), "the file")
    except (OSError, ValueError):  # a SchemaError is one
        return None
    return found if found.gflops > 0 and found.gigabytes_per_s > 0 and found.cache_bytes >= 0 else None


def _measure(threads: int) -> Peaks:
    cache_bytes = last_cache_bytes()
    array_bytes = max(_TIMES_THE_CACHE * cache_bytes, _LEAST_ARRAY_BYTES)
    array_bytes = min(array_bytes, _MOST_ARRAY_BYTES, max(2**20, this_machine().memory_bytes // 4))
    settings = {**os.environ, **dict.fromkeys(_THREAD_SETTINGS, str(threads))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(threads), str(array_bytes)],
        env=settings,
        capture_output=True,
        text=True,
    )
    try:
        gflops, gigabytes = map(float, done.stdout.split())
    except ValueError:
        gflops = gigabytes = math.nan
    if done.returncode or not (0 < gflops < math.inf and 0 < gigabytes < math.inf):
        raise BackendError(
            f"the machine's peaks cannot be measured: a Python of its own said {done.stdout.strip()!r:.80}"
            f" and {done.stderr.strip()[-300:] or 'nothing else'}; see that numpy works there"
        )
    return Peaks(threads, gflops, gigabytes, cache_bytes)
