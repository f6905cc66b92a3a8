"""What the optimizer makes of every family of the zoo, and of transformers of full size.

    python -m bench.optimized [FAMILY…] [--exact] [--budget TEXT] [--objective NAME] [--time S]

Each family is judged on its own data: labelled, where it has any. Without `--budget`, on labelled data the
main metric may fall by half a point, elsewhere the cosine to the reference must be 0.999 or more. Models of
`bench.full_size` have no inputs of their own: they are timed on such as their example inputs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.material import material
from bench.zoo import FAMILIES, FULL_SIZE, family
from bench.zoo.debian import NoDataError
from infer.artifact import Artifact
from infer.errors import InferError
from infer.evaluation import Dataset, evaluate, lower_is_better
from infer.machine import this_machine
from infer.measure.statistics import Estimate
from infer.optimizer import Budget, Optimized, OptimizeOptions, Verdict, optimize, parse_budget
from infer.session import open_artifact, open_session

_MOST = 400


def main() -> None:
    """Print a line for each thing that was tried, and one for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, *FULL_SIZE, []], metavar="FAMILY")
    parser.add_argument("--exact", action="store_true", help="keep answers equal")
    parser.add_argument("--budget", type=parse_budget)
    parser.add_argument("--objective", default="latency")
    parser.add_argument("--time", type=float, default=300.0)
    arguments = parser.parse_args()
    machine = this_machine()
    print(f"{machine.cpu}, {machine.cores} cores, objective {arguments.objective}")
    for name in arguments.families or [*FAMILIES, *FULL_SIZE]:
        try:
            found = _optimized(name, arguments)
        except (InferError, NoDataError) as error:
            print(f"{name}: {error}", flush=True)
            continue
        for verdict in found.verdicts:
            print(f"{name:<20}  {_told(verdict)}")
        said = (
            "nothing was kept"
            if found.outcome.ratio is None
            else f"{found.best}, {_ratio(found.outcome.ratio)}"
        )
        unfinished = f" ({found.unfinished})" if found.unfinished else ""
        print(f"{name:<20}= {said} of the reference's time; {found.data}{unfinished}", flush=True)
        for shortfall in found.shortfalls:
            print(f"{name:<20}! {shortfall}", flush=True)


def _optimized(name: str, arguments: argparse.Namespace) -> Optimized:
    artifact = open_artifact(material(name).artifact)
    with tempfile.TemporaryDirectory(prefix="infer-optimized-") as scratch:
        options = options_of(name, artifact, exact=arguments.exact)
        if arguments.budget is not None:
            options = replace(options, budgets=(arguments.budget,))
        options = replace(options, objective=arguments.objective, time_s=arguments.time)
        return optimize(artifact, Path(scratch) / f"{name}.infer", options)


def options_of(name: str, artifact: Artifact, *, exact: bool) -> OptimizeOptions:
    """The family's own data, and unless answers must be equal the budget that is due to it."""
    data = None if name in FULL_SIZE else _data(name)
    return OptimizeOptions(budgets=() if exact else (_budget(artifact, data),), data=data)


def _data(name: str) -> Dataset | Sequence[Any]:
    module: Any = family(name)
    if hasattr(module, "dataset"):
        found: Dataset = module.dataset()
        # of pairs, the first ones may all have the same input
        places = np.random.default_rng(0).permutation(len(found.inputs))[:_MOST]
        inputs, expected = ([part[i] for i in places] for part in (found.inputs, found.expected))
        return replace(found, inputs=inputs, expected=expected)
    others: Sequence[Any] = module.calibration() if hasattr(module, "calibration") else []
    return [*module.samples(), *others][:_MOST]


def _budget(artifact: Artifact, data: Dataset | Sequence[Any] | None) -> Budget:
    """Half a point of the task's main metric."""
    if not isinstance(data, Dataset):
        return parse_budget("cosine>=0.999")
    with open_session(artifact) as session:
        metric = next(iter(evaluate(session, data).metrics))
    return parse_budget(f"{metric}+0.5%" if lower_is_better(metric) else f"{metric}-0.5%")


def _told(verdict: Verdict) -> str:
    figures = ""
    if verdict.figures:
        figures = ", ".join(
            f"{name} {value:.5f}" for name, value in verdict.figures.items() if name != "equal"
        )
        figures = "equal" if verdict.figures["equal"] else figures
    ratio = "" if verdict.ratio is None else f"{_ratio(verdict.ratio)} of {verdict.against}"
    kept = "kept" if verdict.kept else "dropped"
    return f"{verdict.name}: {verdict.changed}; {figures}; {ratio}; {kept}: {verdict.why}"


def _ratio(ratio: Estimate) -> str:
    return f"×{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


if __name__ == "__main__":
    main()
