"""From process start to the first answer, and peak memory: an artifact against plain ONNX Runtime.

    python -m bench.first_answer ARTIFACT [--rounds N]

Each measurement is a fresh process, timed from outside; candidates take turns. `plain` is ONNX
Runtime on a single exported file with the weights inside, as `torch.onnx.export` writes it by
default; `graph` is ONNX Runtime on the artifact's own graph. All use the same feeds and threads,
and must print the same checksum of the answer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

import infer

_INFER = """
import sys, infer, pathlib
from infer.npz import load_npz
session = infer.load(sys.argv[1], num_threads=int(sys.argv[3]){options})
outputs = session.run(load_npz(pathlib.Path(sys.argv[2])))
print(round(float(next(iter(outputs.values())).sum()), 3))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
_PLAIN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with numpy.load(sys.argv[2]) as feeds:
    outputs = session.run(None, dict(feeds))
print(round(float(outputs[0].sum()), 3))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    """Measure and print one line a candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    artifact = infer.Artifact.open(arguments.artifact)
    feeds = artifact.file(artifact.manifest.golden[0].feeds)
    graph = artifact.file(artifact.manifest.variants[0].graph)
    threads = str(infer.this_machine().cores)
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "model.onnx"
        onnx.save(onnx.load(graph), single)
        candidates = {
            "plain": (_PLAIN, single),
            "graph": (_PLAIN, graph),
            "infer": (_INFER.format(options=""), artifact.path),
            "infer, no warm-up": (_INFER.format(options=", warm_up=False"), artifact.path),
        }
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        answers = set()
        for _ in range(arguments.rounds):
            for name, (program, path) in candidates.items():
                answer, seconds, peak = _measure([program, str(path), str(feeds), threads])
                took[name].append((seconds, peak))
                answers.add(answer)
    if len(answers) != 1:
        raise SystemExit(f"the answers differ: {answers}")
    first = took["plain"]
    print(f"{artifact.manifest.name}, {arguments.rounds} rounds, {threads} threads, medians")
    for name, measured in took.items():
        seconds = statistics.median(s for s, _ in measured)
        ratio = statistics.median(s / f for (s, _), (f, _) in zip(measured, first, strict=True))
        peak = statistics.median(p for _, p in measured)
        print(f"{name:<18} {seconds * 1e3:7.0f} ms  ×{ratio:.2f}  peak {peak:6.0f} MiB")


def _measure(arguments: list[str]) -> tuple[str, float, float]:
    """The sum that the process printed, its seconds from outside, and its peak memory in MiB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    answer, peak_kib = done.stdout.split()
    return answer, seconds, int(peak_kib) / 1024


if __name__ == "__main__":
    main()
