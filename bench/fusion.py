"""The fusion contract over all architectures of tests/architectures.py, or with --zoo over all of the zoo:
what the original does, what passes found and rewrote of it, what the backend makes whole, and why not the
rest.

    python -m bench.fusion [NAME…] [--zoo] [--artifacts FOLDER] [-o TABLE.md]

Each is converted as a user would, or taken from FOLDER/NAME.infer if it is there; every pass of this
machine's target is applied on top of those that keep the golden outputs. Nothing is timed: whether a pass
stays is decided by `infer optimize`, on the machine that serves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import converters
from bench.zoo import FAMILIES, FULL_SIZE, convert
from bench.zoo.debian import NoDataError
from infer.artifact import Artifact
from infer.errors import InferError
from infer.machine import this_machine
from infer.optimizer.contract import REWRITTEN, Counted, shortfalls, whole
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.targets import INSTEAD, targets_of
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES, compare
from infer.planner import make_plan
from infer.session import open_session
from tests.architectures import ARCHITECTURES, Architecture

Maker = Callable[[Path], Artifact]
"""Writes an artifact to a path."""

KINDS = ("attention", "norm", "activation")
"""What is counted in the graph as the backend optimized it."""


@dataclass(frozen=True)
class Fused:
    """What each pass did on top of those before it, and what the backend made of all of it."""

    passes: dict[str, PassResult]
    counted: Counted


def main() -> None:
    """Print a row for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--zoo", action="store_true", help="its families, and models of full size")
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = []
    makers = ZOO if arguments.zoo else SMALL
    wanted = {name: maker for name, maker in makers.items() if name in (arguments.names or makers)}
    for line in table(wanted, arguments.artifacts):
        print(line, flush=True)
        lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(makers: Mapping[str, Maker], artifacts: Path | None) -> Iterator[str]:
    """The rows. Of passes they say rewritten / found; of kinds, how many are fused in the graph as ONNX
    Runtime optimized it / in the original; of batch norms, how many are in weights / in the original."""
    passes = [name for target in targets_of("cpu")[:1] for name in target.passes]
    columns = ["architecture", *(f"pass {name}" for name in passes), *KINDS, "batch norm", "falls short"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, maker in makers.items():
        try:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                there = (artifacts or folder) / f"{name}.infer"
                artifact = Artifact.open(there) if there.exists() else maker(folder / f"{name}.infer")
                cells = row(artifact, folder / "workshop")
        except (InferError, NoDataError) as error:
            cells = [*[""] * (len(columns) - 2), f"fails: {error!s:.200}"]
        yield f"| {' | '.join((name, *(cell.replace('|', '/') for cell in cells)))} |"


def _converted(architecture: Architecture, path: Path) -> Artifact:
    return converters.convert(architecture.save(path.with_suffix("")), path)


SMALL: dict[str, Maker] = {each.name: partial(_converted, each) for each in ARCHITECTURES}
ZOO: dict[str, Maker] = {name: partial(convert, name) for name in (*FAMILIES, *FULL_SIZE)}


def row(artifact: Artifact, folder: Path) -> list[str]:
    """All cells but the name. Raises `InferError`."""
    found = fused(artifact, folder)
    census = artifact.manifest.provenance.census
    cells = [f"{each.rewritten} / {each.found}" if each.found else "" for each in found.passes.values()]
    for kind in KINDS:
        counts = found.counted.whole[kind], census.get(kind, 0)
        cells.append(f"{counts[0]} / {counts[1]}" if any(counts) else "")
    left = sum(sum(each.values()) for kind, each in found.counted.left.items() if "batch norm" in kind)
    expected = census.get("batch norm", 0)
    cells.append(f"{expected - left} / {expected}" if expected else "")
    tried = [
        Verdict(name, True, "", found=each.found, rewritten=each.rewritten, declined=dict(each.declined))
        for name, each in found.passes.items()
        if name in REWRITTEN and (each.rewritten or name not in INSTEAD)
    ]
    short = [str(shortfall) for shortfall in shortfalls(tried, census, found.counted)]
    for name, each in found.passes.items():
        for reason, count in each.declined.items():
            if name not in INSTEAD and not any(reason in said for said in short):
                short.append(f"pass {name} declines {count}: {reason}")
    return [*cells, "<br>".join(short)]


def fused(artifact: Artifact, folder: Path) -> Fused:
    """Apply each pass on top of those before it. One after which golden outputs differ is left out, with
    the difference as its reason."""
    workshop = Workshop(folder, artifact, "")
    found: dict[str, PassResult] = {}
    kept: list[Pass] = []
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions())
    shipped = artifact.file(plan.graph)
    for name, each in targets_of("cpu")[0].passes.items():
        model = workshop.load()
        for before in kept:
            before(model)
        found[name] = each(model)
        if not found[name].rewritten:
            continue
        graph, _ = workshop.write(model, name)
        if wrong := _difference(artifact, workshop.artifact(graph)):
            found[name] = PassResult(found[name].found, 0, Counter({f"answers differ at {wrong}": 1}))
            continue
        kept.append(each)
        shipped = workshop.folder / graph
    return Fused(found, whole(shipped, plan))


def _difference(artifact: Artifact, changed: Artifact) -> str:
    parity = artifact.manifest.parity
    tolerances = parity.tolerances if parity else TOLERANCES
    with open_session(changed, options=SessionOptions(verify=False, warm_up=False)) as session:
        for point, feeds, expected in artifact.golden():
            for difference in compare(expected, session.run(feeds), tolerances):
                if not difference.within:
                    return f"{point}: {difference}"
    return ""


if __name__ == "__main__":
    main()
