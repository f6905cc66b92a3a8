"""The fusion contract over all architectures of tests/architectures.py: what the original does, what passes
found and rewrote of it, what the backend makes whole, and why not the rest.

    python -m bench.fusion [NAME…] [--artifacts FOLDER] [-o TABLE.md]

Each is converted as a user would, or taken from FOLDER/NAME.infer if it is there; every pass of this
machine's target is applied on top of those that keep the golden outputs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import converters
from infer.artifact import Artifact
from infer.errors import InferError
from infer.machine import this_machine
from infer.optimizer.contract import REWRITTEN, whole
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.targets import targets_of
from infer.optimizer.workshop import Workshop
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES, compare
from infer.planner import make_plan
from infer.session import open_session
from tests.architectures import ARCHITECTURES


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


def table(names: list[str], artifacts: Path | None) -> Iterator[str]:
    """The rows; counts are rewritten / found / in the original, or whole / in the original."""
    passes = targets_of("cpu")[0].passes
    names_of = [*passes, "norm", "activation"]
    yield f"| architecture | {' | '.join(names_of)} | not rewritten because |"
    yield "|---" * (len(names_of) + 2) + "|"
    for architecture in ARCHITECTURES:
        if names and architecture.name not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            there = artifacts / f"{architecture.name}.infer" if artifacts else folder / "none"
            try:
                artifact = (
                    Artifact.open(there)
                    if there.exists()
                    else converters.convert(architecture.save(folder / "model"), folder / "model.infer")
                )
                found, left = rewritten(artifact, folder / "workshop")
            except InferError as error:
                yield f"| {architecture.name} | {'| ' * len(names_of)}| fails: {error!s:.200} |"
                continue
        census = artifact.manifest.provenance.census
        cells = []
        for name, result in found.items():
            counted = f" / {census.get(REWRITTEN[name], 0)}" if name in REWRITTEN else ""
            cells.append(f"{result.rewritten} / {result.found}{counted}")
        cells += [f"{left[kind]} / {census.get(kind, 0)}" for kind in ("norm", "activation")]
        why = "; ".join(
            f"{name}: {count} {reason}"
            for name, result in found.items()
            for reason, count in result.declined.items()
        )
        yield f"| {architecture.name} | {' | '.join(cells)} | {why} |"


def rewritten(artifact: Artifact, folder: Path) -> tuple[dict[str, PassResult], dict[str, int]]:
    """What each pass did on top of those before it, and what is whole when the graph is loaded. A pass
    after which golden outputs differ is left out, with the difference as its reason."""
    workshop = Workshop(folder, artifact, "")
    found: dict[str, PassResult] = {}
    kept: list[Pass] = []
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions())
    for name, each in targets_of("cpu")[0].passes.items():
        model = workshop.load()
        for before in kept:
            before(model)
        found[name] = each(model)
        graph, _ = workshop.write(model, name)
        if wrong := _difference(artifact, workshop.artifact(name, graph)):
            found[name] = PassResult(found[name].found, 0, Counter({f"answers differ at {wrong}": 1}))
        elif found[name].rewritten:
            kept.append(each)
            left = whole(workshop.folder / graph, plan)
    if not kept:
        left = whole(artifact.file(plan.graph), plan)
    return found, left


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
