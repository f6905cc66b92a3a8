"""The fusion contract over all architectures of tests/architectures.py: what the original does, what passes
found and rewrote of it, what the backend makes whole, and why not the rest.

    python -m bench.fusion [NAME…] [--artifacts FOLDER] [-o TABLE.md]

Each is converted as a user would, or taken from FOLDER/NAME.infer if it is there; every pass of this
machine's target is applied on top of those that keep the golden outputs. Nothing is timed: whether a pass
stays is decided by `infer optimize`, on the machine that serves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import converters
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
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = []
    for line in table(arguments.names, arguments.artifacts):
        print(line, flush=True)
        lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(names: Collection[str], artifacts: Path | None) -> Iterator[str]:
    """The rows. Of passes they say rewritten / found; of kinds, how many are fused in the graph as ONNX
    Runtime optimized it / in the original; of batch norms, how many are in weights / in the original."""
    passes = [name for target in targets_of("cpu")[:1] for name in target.passes]
    columns = ["architecture", *(f"pass {name}" for name in passes), *KINDS, "batch norm", "falls short"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for architecture in ARCHITECTURES:
        if names and architecture.name not in names:
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                cells = row(_artifact(architecture, artifacts, Path(scratch)), Path(scratch) / "workshop")
        except InferError as error:
            cells = [*[""] * (len(columns) - 2), f"fails: {error!s:.200}"]
        yield f"| {' | '.join((architecture.name, *(cell.replace('|', '/') for cell in cells)))} |"


def _artifact(architecture: Architecture, artifacts: Path | None, scratch: Path) -> Artifact:
    if artifacts is not None and (there := artifacts / f"{architecture.name}.infer").exists():
        return Artifact.open(there)
    return converters.convert(architecture.save(scratch / "model"), scratch / "model.infer")


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
