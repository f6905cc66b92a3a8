"""From the start of a process to its first answer, its peak memory and size, beside plain ONNX Runtime.

    python -m bench.first_answer FAMILY… [--rounds N] [-o FILE.md]

Of each family, what `bench.peers compare` has of it: the plain export on ONNX Runtime, and in infer the
artifact as it was converted, optimized with equal answers, and within the family's budget; the latter two
where their searches were done. Each measurement is a process of its own, timed from outside; they take
turns, with the same threads and the family's first input, and find Python's bytecode compiled. Peak memory
is the resident set's. Sizes are of the graphs that are loaded, with their weights.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from bench.peers import OPTIMIZED
from bench.peers.material import Material, material
from bench.peers.ours_optimized import MADE
from bench.report import report
from infer.cli.progress import Progress
from infer.machine import this_machine
from infer.npz import save_npz
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact

_END = """
print(float(sum(abs(array.astype("float64")).sum() for array in outputs)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
_INFER = """
import sys, infer, numpy
session = infer.load(sys.argv[1])
with numpy.load(sys.argv[2]) as feeds:
    outputs = session.run(dict(feeds)).values()
"""
_PLAIN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
taken = {value.name for value in session.get_inputs()}
with numpy.load(sys.argv[2]) as feeds:
    outputs = session.run(None, {name: array for name, array in feeds.items() if name in taken})
"""

_NEAR = 1e-3
"""Sums of answers that should be equal may differ by so much."""


@dataclass(frozen=True)
class _Candidate:
    program: str
    path: Path
    size_bytes: int
    exact: bool = True


@click.command()
@click.argument("families", nargs=-1, required=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(families: tuple[str, ...], rounds: int, output: Path | None) -> None:
    """Print a row for each family and candidate."""
    lines = [
        "Medians of processes that took turns. `×` is over the family's first row.",
        "",
        "| family | | first answer, ms | × | peak memory, MiB | × | size, MiB | × |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with Progress() as progress:
        for family in families:
            found = material(family, progress)
            lines += _rows(found, _measured(found, rounds, progress))
    report("First answers, memory and size", lines, "bench.first_answer", output)


def _measured(
    found: Material, rounds: int, progress: Progress
) -> Mapping[str, list[tuple[float, float, float]]]:
    """Seconds, peak MiB and size of each candidate. Exits if answers that should be equal are not."""
    candidates, threads = _candidates(found), str(this_machine().cores)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
        }
        feeds = Path(folder) / "feeds.npz"
        save_npz(feeds, found.feeds)
        sums: dict[str, float] = {}
        for number in range(rounds + 1):
            for name, each in candidates.items():
                progress(f"{found.name}, {name}, {number} of {rounds}")
                command = [sys.executable, "-c", each.program + _END, str(each.path), str(feeds), threads]
                start = time.perf_counter()
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env=environment
                )
                seconds = time.perf_counter() - start
                answer, peak_kib = done.stdout.split()
                sums[name] = float(answer)
                if number:  # the first one compiles
                    measured[name].append((seconds, int(peak_kib) / 1024, each.size_bytes / 2**20))
    equal = {name: sums[name] for name, each in candidates.items() if each.exact}
    if not max(equal.values()) - min(equal.values()) <= _NEAR * max(equal.values()):
        raise click.ClickException(f"{found.name}: the answers differ: {equal}")
    return measured


def _candidates(found: Material) -> dict[str, _Candidate]:
    graph = found.graph
    plain = {}
    if graph is not None:
        size_bytes = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
        plain = {"ONNX Runtime on the plain export": _Candidate(_PLAIN, graph, size_bytes)}
    ours = {"as converted": _ours(found.artifact)}
    for peer in OPTIMIZED:
        given = found.given(peer, this_machine().cores, found.folder)
        made = Path(given.made) / MADE
        if made.exists():
            ours[f"optimized, answers {peer.settings['answers']}"] = _ours(made, exact=peer.exact)
    return {**plain, **ours}


def _ours(path: Path, *, exact: bool = True) -> _Candidate:
    manifest = open_artifact(path).manifest
    plan = make_plan(manifest, this_machine(), PlanOptions())
    graphs = {part.loaded for part in plan.parts}
    files = [file for graph in graphs for file in (graph, f"{graph}.data") if file in manifest.files]
    return _Candidate(_INFER, path, sum(manifest.files[file].size_bytes for file in files), exact)


def _rows(found: Material, measured: Mapping[str, list[tuple[float, float, float]]]) -> list[str]:
    first = next(iter(measured.values()))
    rows = []
    for name, each in measured.items():
        cells = []
        for place, scale in enumerate((1e3, 1.0, 1.0)):
            value = scale * statistics.median(one[place] for one in each)
            ratio = statistics.median(a[place] / b[place] for a, b in zip(each, first, strict=True))
            cells += [f"{value:.0f}" if value >= 10 else f"{value:.2g}", f"{ratio:.2f}"]
        rows.append(f"| {found.name} | {name} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
