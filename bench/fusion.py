"""The fusion contract over all architectures of tests/architectures.py: what the original does, what passes
found and rewrote of it, and why not the rest.

    python -m bench.fusion [NAME…] [--artifacts FOLDER] [-o TABLE.md]

Each is converted as a user would, or taken from FOLDER/NAME.infer if it is there; every pass of this
machine's target is applied on top of the others, and the result is held to the golden outputs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import converters
from infer.artifact import Artifact
from infer.errors import InferError
from infer.optimizer.passes import PassResult
from infer.optimizer.targets import CENSUS, targets_of
from infer.optimizer.workshop import Workshop
from infer.options import SessionOptions
from infer.parity import TOLERANCES, compare
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
    """The rows; counts are rewritten / found / in the original, where that is counted."""
    passes = targets_of("cpu")[0].passes
    yield f"| architecture | {' | '.join(passes)} | answers | not rewritten because |"
    yield "|---" * (len(passes) + 3) + "|"
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
                found, answers = rewritten(artifact, folder / "workshop")
            except InferError as error:
                yield f"| {architecture.name} | {'| ' * len(passes)}| fails: {error!s:.200} | |"
                continue
        census = artifact.manifest.provenance.census
        cells = []
        for name, result in found.items():
            counted = f" / {census.get(CENSUS[name], 0)}" if name in CENSUS else ""
            cells.append(f"{result.rewritten} / {result.found}{counted}")
        why = "; ".join(
            f"{name}: {count} {reason}"
            for name, result in found.items()
            for reason, count in result.declined.items()
        )
        yield f"| {architecture.name} | {' | '.join(cells)} | {answers} | {why} |"


def rewritten(artifact: Artifact, folder: Path) -> tuple[dict[str, PassResult], str]:
    """What each pass did, and whether the golden outputs still hold."""
    workshop = Workshop(folder, artifact, "")
    model = workshop.load()
    found = {name: each(model) for name, each in targets_of("cpu")[0].passes.items()}
    graph, _ = workshop.write(model, "fused")
    parity = artifact.manifest.parity
    tolerances = parity.tolerances if parity else TOLERANCES
    options = SessionOptions(verify=False, warm_up=False)
    wrong = []
    with open_session(workshop.artifact("fused", graph), options=options) as session:
        for point, feeds, expected in artifact.golden():
            wrong += [
                f"{point}: {difference}"
                for difference in compare(expected, session.run(feeds), tolerances)
                if not difference.within
            ]
    return found, "equal" if not wrong else f"DIFFER at {wrong[0]}"


if __name__ == "__main__":
    main()
